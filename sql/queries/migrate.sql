-- name: alone
-- Until its connection ends. It is asked for again and again: an index that is built concurrently waits for all statements
-- that are under way, so also for one in which another process would wait for this.
select pg_try_advisory_lock(727001);

-- name: table
create table if not exists migrations (name text primary key, hash text not null, done_at timestamptz not null default now());

-- name: exists
select to_regclass('migrations') is not null;

-- name: done
select name, hash from migrations order by name;

-- name: record
insert into migrations (name, hash) values ($1, $2);

-- name: alive
-- Workers whose leases hold.
select host, pid from workers where state not in ('dead', 'stopped') and lease_until > clock_timestamp() order by host, pid limit 5;

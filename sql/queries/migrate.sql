-- name: begin_alone
-- Whoever migrates is waited for. A table that others hold is not: all who come after a migration would wait behind it.
set local lock_timeout = 0;
select pg_advisory_xact_lock(727001);
set local lock_timeout = '5s';

-- name: table
create table if not exists migrations (name text primary key, hash text not null, done_at timestamptz not null default now());

-- name: exists
select to_regclass('migrations') is not null;

-- name: done
select name, hash from migrations order by name;

-- name: record
insert into migrations (name, hash) values ($1, $2);

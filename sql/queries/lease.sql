-- name: register
insert into workers (worker, host, pid, version, lease_until, state, slots, in_flight, pipelines)
values ($1, $2, $3, $4, clock_timestamp() + $5::interval, 'ready', $6, 0, $7);

-- name: beat
-- A lost lease is never revived: once a rescue has judged it, no row comes back, and the worker must register anew.
update workers
set beat_at = clock_timestamp(), lease_until = clock_timestamp() + $2::interval, state = $3, in_flight = $4
where worker = $1 and state not in ('dead', 'stopped')
returning worker;

-- name: leave
update workers set state = 'stopped', lease_until = clock_timestamp(), in_flight = 0 where worker = $1 and state <> 'dead';

-- name: rescue
-- Leases that have run out free the claims held under them; the loss is a fact, not an attempt.
with gone as (
    update workers set state = 'dead' where state not in ('dead', 'stopped') and lease_until < clock_timestamp()
    returning worker
), orphaned as (
    select w.event_id, w.claim, w.run, w.attempts, w.worker, w.claimed_at
    from work w
    where w.status = 'running'
      and (w.worker in (select worker from gone)
           or w.worker in (select worker from workers where state in ('dead', 'stopped')))
    order by w.event_id for update of w skip locked
), freed as (
    update work w
    set status = 'queued', worker = null, lost = w.lost + 1, due_at = clock_timestamp(), rung_at = clock_timestamp(), rung_to = 'front'
    from orphaned o where w.event_id = o.event_id
    returning w.event_id
), facts as (
    insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome)
    select event_id, claim, run, attempts + 1, worker, claimed_at, clock_timestamp(), 'lost' from orphaned
    on conflict (event_id, claim) do nothing
)
select event_id from freed;

-- name: due
-- Whether upkeep has anything to do, and which memory of Redis was last seen: one cheap statement a second.
select exists (select 1 from work where rung_at is null and status in ('queued', 'scheduled') and due_at <= clock_timestamp())
           as unrung,
       exists (select 1 from work where status in ('queued', 'scheduled') and rung_at < clock_timestamp() - interval '5 s') as stale,
       exists (select 1 from workers where state not in ('dead', 'stopped') and lease_until < clock_timestamp())
           or exists (select 1 from work w join workers using (worker) where w.status = 'running' and state in ('dead', 'stopped'))
           as expired,
       epoch.epoch
from epoch;

-- name: now
select clock_timestamp();

-- name: new_epoch
-- Compare and set: whoever sees the new memory first says when the old one was lost.
update epoch set epoch = $2, lost_at = case when epoch = '' then lost_at else clock_timestamp() end where epoch = $1;

-- name: sweep
-- Ring again what is due, not running, and was last rung before Redis lost its memory or before the moment up to
-- which the group has read its stream ($1, $2): an entry that still waits there is never doubled. Keyed events: only the
-- head of each mailbox, found by stepping from key to key.
with recursive mailboxes as (
    (select tenant, key, event_id from work where key is not null order by tenant, key, ord limit 1)
    union all
    select next.tenant, next.key, next.event_id
    from mailboxes m cross join lateral (
        select w.tenant, w.key, w.event_id from work w
        where w.key is not null and (w.tenant, w.key) > (m.tenant, m.key) order by w.tenant, w.key, w.ord limit 1) as next
), due as (
    (select event_id, due_at from work
     where key is null and status in ('queued', 'scheduled') and rung_at is null and due_at <= clock_timestamp()
     order by due_at limit $3)
    union all
    (select event_id, due_at from work
     where key is null and status in ('queued', 'scheduled') and due_at <= clock_timestamp()
       and rung_at < greatest((select lost_at from epoch), case rung_to when 'front' then $2::timestamptz else $1::timestamptz end)
     order by rung_at limit $3)
    union all
    (select w.event_id, w.due_at from mailboxes m join work w using (event_id)
     where w.status in ('queued', 'scheduled') and w.due_at <= clock_timestamp()
       and (w.rung_at is null
            or w.rung_at < greatest((select lost_at from epoch), case w.rung_to when 'front' then $2::timestamptz else $1::timestamptz end)))
), locked as (
    select w.event_id from work w
    where w.event_id in (select event_id from due order by due_at limit $3)
    order by w.event_id for update skip locked
)
update work w set rung_at = clock_timestamp(), rung_to = 'work'
from locked where w.event_id = locked.event_id
returning w.event_id;

-- name: hold_duty
update duties set holder = $2, held_until = clock_timestamp() + $3::interval
where duty = $1 and (holder = $2 or held_until < clock_timestamp())
returning duty;

-- name: release_duty
update duties set held_until = '-infinity' where duty = $1 and holder = $2;

-- name: forget_pipelines
-- A pipeline that was renamed leaves its type to the new name.
delete from pipelines where type = any ($1::text[]) and name <> all ($2::text[]);

-- name: write_pipeline
insert into pipelines (name, type, version, attempts_max, nodes, edges) values ($1, $2, $3, $4, $5, $6)
on conflict (name) do update
    set type = excluded.type, version = excluded.version, attempts_max = excluded.attempts_max, nodes = excluded.nodes,
        edges = excluded.edges, written_at = clock_timestamp();

-- name: register
insert into workers (worker, host, pid, version, lease_until, state, slots, in_flight, pipelines)
values ($1, $2, $3, $4, clock_timestamp() + $5::interval, 'ready', $6, 0, $7);

-- name: beat
-- A lost lease is never revived: once a rescue has judged it, no row comes back, and the worker must register anew.
update workers
set beat_at = clock_timestamp(), lease_until = clock_timestamp() + $2::interval, state = $3, in_flight = $4
where worker = $1 and state not in ('dead', 'stopped')
returning (select count(*)::integer from workers where state not in ('dead', 'stopped')) as alive;

-- name: hold_deadlines
-- Of a worker that was stopped in a debugger: what it runs has no time limit, so nobody takes it from it.
update work set deadline_at = greatest(deadline_at, clock_timestamp() + interval '1 min') where worker = $1 and status = 'running';

-- name: leave
update workers set state = 'stopped', lease_until = clock_timestamp(), in_flight = 0 where worker = $1 and state <> 'dead';

-- name: rescue
-- Leases that have run out free the claims held under them; the loss is a fact, not an attempt. A loss is a strike only
-- where the event was its worker's one suspect: nobody else can have caused it. From the second loss in a row on, the
-- event waits before it comes again.
with gone as (
    update workers set state = 'dead' where state not in ('dead', 'stopped') and lease_until < clock_timestamp()
    returning worker
), orphaned as (
    select w.event_id, w.claim, w.run, w.attempts, w.worker, w.claimed_at, w.lost
    from work w
    where w.status = 'running'
      and (w.worker in (select worker from gone)
           or w.worker in (select worker from workers where state in ('dead', 'stopped')))
    order by w.event_id for update of w skip locked
), judged as (
    select o.*, o.lost >= 1 and count(*) filter (where o.lost >= 1) over (partition by o.worker) = 1 as strike from orphaned o
), freed as (
    update work w
    set status = 'queued', worker = null, lost = w.lost + 1, strikes = w.strikes + j.strike::integer,
        due_at = clock_timestamp() + case when j.lost = 0 then interval '0' else make_interval(secs => 2 ^ least(j.lost, 5)) end,
        rung_at = case when j.lost = 0 then clock_timestamp() end, rung_to = 'front', cause = 'its worker was lost'
    from judged j where w.event_id = j.event_id
    returning w.event_id, w.lost
), facts as (
    insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome)
    select event_id, claim, run, attempts + 1, worker, claimed_at, clock_timestamp(), 'lost' from orphaned
    on conflict (event_id, claim) do nothing
)
select event_id, lost from freed;

-- name: overdue
-- A run that its own worker, alive, could not end: 15 s past its deadline it is taken from it, and it was an attempt. (A
-- run whose worker is gone was lost, whatever its deadline: that is the rescue's, and no attempt.)
with late as (
    select w.event_id, w.claim, w.run, w.attempts, w.worker, w.claimed_at from work w
    where w.status = 'running' and w.deadline_at < clock_timestamp() - interval '15 s'
      and exists (select 1 from workers holder where holder.worker = w.worker and holder.state not in ('dead', 'stopped')
                  and holder.lease_until >= clock_timestamp())
    order by w.event_id for update of w skip locked
), freed as (
    update work w
    set status = 'scheduled', worker = null, attempts = w.attempts + 1, due_at = clock_timestamp(), rung_at = null,
        cause = 'past its deadline, and its worker could not end it'
    from late l where w.event_id = l.event_id
    returning w.event_id
)
insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome)
select event_id, claim, run, attempts + 1, worker, claimed_at, clock_timestamp(), 'failed' from late
on conflict (event_id, claim) do nothing;

-- name: bury
-- What can't be tried again: N strikes ($1) end as a crash loop, and attempts spent on runs that nobody could end, as a
-- deadline. $2 draws the ids of the letters.
with lost as (
    select w.event_id, e.type, w.tenant, w.key, w.claim, w.run, w.attempts,
           case when w.strikes >= $1::integer then 'crash_loop' else 'deadline' end as reason
    from work w
    join events e using (event_id)
    left join pipelines p on case when e.reaction is null then p.type = e.type else p.name = e.reaction end
    where w.status in ('queued', 'scheduled')
      and (w.strikes >= $1::integer or (w.cause like 'past its deadline%' and w.attempts >= coalesce(p.attempts_max, 5)))
    order by w.event_id limit cardinality($2::uuid[]) for update of w skip locked
), told as (
    select l.*, ($2::uuid[])[row_number() over ()] as dead_id,
           json_build_object('kind', l.reason, 'step', null, 'at', clock_timestamp(), 'message',
                             case l.reason when 'crash_loop' then 'its worker was lost each time it ran this event alone'
                                           else 'its runs went past their deadline and could not be ended' end) as error
    from lost l
), closed as (
    delete from work w using told t where w.event_id = t.event_id
), ended as (
    update events e
    set status = 'dead', error = t.error, finished_at = clock_timestamp(), attempts = t.attempts, claim = t.claim
    from told t where e.event_id = t.event_id
), letters as (
    insert into dead_letters (dead_id, origin, tenant, event_id, type, reason, error, attempts, event)
    select t.dead_id, t.event_id || '/' || t.run, e.tenant, e.event_id, e.type, t.reason, t.error, t.attempts,
           left((jsonb_strip_nulls(jsonb_build_object('specversion', '1.0', 'id', e.id, 'source', e.source, 'type', e.type,
                                                      'partitionkey', e.partitionkey))
                 || e.attributes::jsonb - 'extensions' || coalesce(e.attributes::jsonb -> 'extensions', '{}'))::text, -1)
               || ', "data": ' || e.data || '}'
    from told t join events e using (event_id)
    on conflict (origin) do nothing
)
select event_id, type, tenant, key from told;

-- name: unknown_claims
-- What Postgres says this worker runs, and it does not hold: a claim whose answer got lost. Handed back, uncharged.
with unknown as (
    select event_id, claim, run, attempts, claimed_at from work
    where worker = $1 and status = 'running' and claimed_at < clock_timestamp() - interval '5 s' and event_id <> all ($2::uuid[])
    order by event_id for update skip locked
), freed as (
    update work w set status = 'queued', worker = null, due_at = clock_timestamp(), rung_at = clock_timestamp(), rung_to = 'front'
    from unknown u where w.event_id = u.event_id
), facts as (
    insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome)
    select event_id, claim, run, attempts + 1, $1, claimed_at, clock_timestamp(), 'handed_back' from unknown
    on conflict (event_id, claim) do nothing
)
select event_id from unknown;

-- name: not_ours
-- Of the claims in hand, those that Postgres has given to somebody else, or to nobody.
select h.event_id from unnest($1::uuid[], $2::bigint[]) as h (event_id, claim)
where not exists (
    select 1 from work w where w.event_id = h.event_id and w.claim = h.claim and w.worker = $3 and w.status = 'running');

-- name: due
-- Whether upkeep has anything to do, and which memory of Redis was last seen: one cheap statement a second. `now()` because a
-- volatile clock can't be looked up in an index, and a million events may be due another day.
select exists (select 1 from work where rung_at is null and status in ('queued', 'scheduled') and due_at <= now())
           as unrung,
       exists (select 1 from work where status in ('queued', 'scheduled')
                 and rung_at < greatest(now() - interval '5 s', epoch.lost_at)) as stale,
       exists (select 1 from work where ord is null and due_at <= now()) as unplaced,
       exists (select 1 from workers where state not in ('dead', 'stopped') and lease_until < clock_timestamp())
           or exists (select 1 from work w join workers using (worker) where w.status = 'running' and state in ('dead', 'stopped'))
           as expired,
       exists (select 1 from work join workers holder using (worker)
               where status = 'running' and deadline_at < clock_timestamp() - interval '15 s'
                 and holder.state not in ('dead', 'stopped') and holder.lease_until >= clock_timestamp()) as overdue,
       exists (select 1 from dead_letters where not relayed) as unrelayed,
       exists (select 1 from (select worker from calls where outcome = 'open' union all select worker from allowances) as spenders
               where not exists (select 1 from workers w where w.worker = spenders.worker and w.state not in ('dead', 'stopped')))
           as unsettled,
       epoch.epoch
from epoch;

-- name: unplaced
select tenant, key from work where ord is null and due_at <= now() order by due_at limit 1000;

-- name: draw_places
-- Keyed events that were not due draw their place when they are, in the order in which they became due.
update work w set ord = drawn.ord
from (select event_id, nextval('place') as ord
      from (select event_id from work
            where ord is null and due_at <= clock_timestamp() and (tenant, key) in (select * from unnest($1::text[], $2::text[]))
            order by due_at, event_id) as due) as drawn
where w.event_id = drawn.event_id;

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
     where key is null and status in ('queued', 'scheduled') and rung_at is null and due_at <= now()
     order by due_at limit $3)
    union all
    (select event_id, due_at from work
     where key is null and status in ('queued', 'scheduled') and due_at <= now()
       and rung_at < greatest((select lost_at from epoch), case rung_to when 'front' then $2::timestamptz else $1::timestamptz end)
     order by rung_at limit $3)
    union all
    (select w.event_id, w.due_at from mailboxes m join work w using (event_id)
     where w.status in ('queued', 'scheduled') and w.due_at <= now() and w.ord is not null
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
-- What was drawn of these types and under these names: a renamed pipeline leaves its type to the new name.
delete from pipelines where coalesce(type, follows_type) = any ($1::text[]) or name = any ($2::text[]);

-- name: write_pipeline
insert into pipelines (name, type, version, attempts_max, timeout_s, nodes, edges, follows, follows_type, needs_key)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (name) do update
    set type = excluded.type, version = excluded.version, attempts_max = excluded.attempts_max, timeout_s = excluded.timeout_s,
        nodes = excluded.nodes, edges = excluded.edges, follows = excluded.follows, follows_type = excluded.follows_type,
        needs_key = excluded.needs_key, written_at = clock_timestamp();

-- name: operations
-- The latest $2 operations. `among`: how many there are in all.
select * from (
    select at, actor, action, detail, count(*) over () as among, row_number() over (order by at desc) as nth
    from operations where event_id = $1 and action <> 'discard') as numbered
where nth <= $2
order by at;

-- name: event
select e.event_id, e.tenant, e.source, e.id, e.type, e.partitionkey, e.attributes, e.data, e.accepted_at, e.finished_at,
       e.result, e.error, e.attempts as attempts_then, e.run as run_then, e.pipeline as ran, e.worker as worker_then,
       coalesce(w.status, e.status) as status, w.attempts as attempts_now, w.run as run_now, w.worker as worker_now,
       w.due_at, w.claimed_at, w.claim, w.notified_at, w.cause,
       e.parent, e.accepted_by, coalesce(e.follow_up, p.name) as pipeline, p.attempts_max
from events e
left join work w using (event_id)
left join pipelines p on case when e.follow_up is null then p.type = e.type else p.name = e.follow_up end
where e.event_id = $1 and e.tenant = $2;

-- name: attempts
-- The latest attempts, up to $3 rows and $2 bytes, but at least one. `among`: how many there are in all; `first_at`: when the
-- first one began.
select * from (
    select claim, run, attempt, worker, started_at, finished_at, outcome, detail, steps,
           count(*) over () as among, min(started_at) over () as first_at, row_number() over (order by claim desc) as nth,
           sum(octet_length(steps::text) + coalesce(octet_length(detail::text), 0)) over (order by claim desc) as bytes
    from attempts where event_id = $1) as sized
where (bytes <= $2 and nth <= $3) or nth = 1
order by claim;

-- name: calls
-- The latest $2 calls. `among`: how many there are in all; `total_usd`: what all of them cost.
select * from (
    select run, claim, step, at, prompt, version, provider, model, tokens_in, tokens_out, cost_usd, priced, ms, outcome, cause,
           simulated, count(*) over () as among, sum(cost_usd) over () as total_usd, row_number() over (order by at desc) as nth
    from calls where event_id = $1) as numbered
where nth <= $2
order by at;

-- name: events
-- Newest first: event ids are UUIDv7. Each filter counts where it is not null; what is open is looked for in `work` alone.
-- Up to $9 events fit, `among` in number; returns as many as have $11 bytes in their columns without a bound, but at least one.
with fit as (
select e.event_id, e.tenant, e.source, e.id, e.type, e.partitionkey, e.attributes, e.accepted_at, e.finished_at,
       e.attempts as attempts_then, e.run as run_then, e.pipeline as ran, e.worker as worker_then,
       coalesce(w.status, e.status) as status, w.attempts as attempts_now, w.run as run_now, w.worker as worker_now, w.due_at,
       e.parent, e.accepted_by, coalesce(e.follow_up, p.name) as pipeline, p.attempts_max,
       coalesce(e.error, case when coalesce(w.status, e.status) not in ('succeeded', 'dead') then
           (select a.detail from attempts a where a.event_id = e.event_id and a.run = coalesce(w.run, e.run) and a.detail is not null
            order by a.claim desc limit 1) end) as error,
       least(w.first_at, (select min(a.started_at) from attempts a where a.event_id = e.event_id)) as started_at,
       spent.calls, spent.cost_usd
from events e
left join work w using (event_id)
left join pipelines p on case when e.follow_up is null then p.type = e.type else p.name = e.follow_up end
cross join lateral (select count(*) as calls, coalesce(sum(c.cost_usd), 0) as cost_usd from calls c where c.event_id = e.event_id) as spent
where e.tenant = $1
  and ($2::text is null or e.type = $2)
  and ($3::text is null or coalesce(w.status, e.status) = $3)
  and ($3::text is null or $3 in ('succeeded', 'dead', 'cancelled') or w.event_id is not null)
  and ($4::text is null or e.partitionkey = $4)
  and ($5::text is null or e.source = $5)
  and ($6::text is null or e.id = $6)
  and ($7::uuid is null or e.event_id >= $7)
  and ($8::uuid is null or e.event_id < $8)
  and ($10::uuid is null or e.parent = $10)
order by e.event_id desc
limit $9
)
select * from (
    select *, count(*) over () as among, row_number() over (order by event_id desc) as nth,
           sum(octet_length(attributes::text) + octet_length(source) + octet_length(id) + coalesce(octet_length(error::text), 0))
               over (order by event_id desc) as bytes
    from fit) as sized
where bytes <= $11 or nth = 1
order by nth;

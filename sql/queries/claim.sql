-- name: claim
-- In id order, skipping what others hold, so that two workers with the same ids can't wait for each other; only the
-- head of a mailbox; by key look-ups only (the lateral join keeps the planner off the due index). Suspects, events whose
-- last claims were lost one after the other, run beside fewer and fewer others: $3 are in hand, $4 are the slots.
with ready as (
    select x.event_id, x.lost,
           case when x.lost >= 2 then row_number() over (partition by x.lost >= 2 order by x.event_id) else 0 end as suspect
    from (select distinct unnest($1::uuid[]) as event_id order by 1) as rung
    cross join lateral (select * from work where work.event_id = rung.event_id for update skip locked) as x
    where x.status in ('queued', 'scheduled') and x.due_at <= clock_timestamp()
      and (x.key is null or (x.ord is not null and not exists (
          select 1 from work before where before.tenant = x.tenant and before.key = x.key and before.ord < x.ord)))
)
update work w
set status = 'running', claim = w.claim + 1, worker = $2, claimed_at = clock_timestamp(), cause = null, waits_for = null,
    first_at = coalesce(w.first_at, clock_timestamp()),
    deadline_at = clock_timestamp() + make_interval(secs => coalesce(
        (select timeout_s from pipelines where name = e.reaction), (select timeout_s from pipelines where type = e.type), 3600))
from events e
where e.event_id = w.event_id
  and w.event_id = any (array(
      select event_id from ready
      where lost < 2 or suspect + $3::integer <= greatest(1, $4::integer / (4 ^ least(lost - 1, 8))::integer)))
returning w.event_id, w.tenant, w.key, w.run, w.attempts, w.lost, w.put_offs, w.misses, w.claim, w.claimed_at, w.due_at,
          e.source, e.id, e.type, e.data, e.attributes, e.parent, e.reaction;

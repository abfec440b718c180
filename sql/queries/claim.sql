-- name: claim
-- In id order, skipping what others hold, so that two workers with the same ids can't wait for each other; only the
-- head of a mailbox; by key look-ups only (the lateral join keeps the planner off the due index). Poison suspects, events whose
-- last claims were lost one after the other, run beside fewer and fewer others: $3 are in hand, $4 are the slots.
with ready as (
    select x.event_id, x.consecutive_losses,
           case when x.consecutive_losses >= 2
                then row_number() over (partition by x.consecutive_losses >= 2 order by x.event_id) else 0 end as suspect_no
    from (select distinct unnest($1::uuid[]) as event_id order by 1) as notified
    cross join lateral (select * from work where work.event_id = notified.event_id for update skip locked) as x
    where x.status in ('queued', 'scheduled') and x.due_at <= clock_timestamp()
      and (x.partition_key is null or (x.mailbox_seq is not null and not exists (
          select 1 from work before where before.tenant = x.tenant and before.partition_key = x.partition_key
                                      and before.mailbox_seq < x.mailbox_seq)))
)
update work w
set status = 'running', claim = w.claim + 1, worker = $2, claimed_at = clock_timestamp(), cause = null, blocked_by = null,
    first_at = coalesce(w.first_at, clock_timestamp()),
    deadline_at = clock_timestamp() + make_interval(secs => coalesce(
        (select timeout_s from pipelines where name = e.follow_up), (select timeout_s from pipelines where type = e.type), 3600))
from events e
where e.event_id = w.event_id
  and w.event_id = any (array(
      select event_id from ready
      where consecutive_losses < 2
         or suspect_no + $3::integer <= greatest(1, $4::integer / (4 ^ least(consecutive_losses - 1, 8))::integer)))
returning w.event_id, w.tenant, w.partition_key, w.run, w.attempts, w.consecutive_losses, w.snoozes, w.doubtful_snoozes, w.claim,
          w.claimed_at, w.due_at, e.source, e.id, e.type, e.data, e.attributes, e.parent, e.follow_up;

-- name: backlog
-- Over open events only, each count and each look for the oldest bounded: counts by $1, looks by $2 rows. What was notified
-- was due. The oldest is exact where it was never notified; of those that were, the first by notification and the first by acceptance
-- are looked at.
select (select count(*) from (select 1 from work where status = 'running' limit $1) as r) as running,
       (select count(*) from (select 1 from work
                              where status in ('queued', 'scheduled') and notified_at > '-infinity' limit $1) as r)
     + (select count(*) from (select 1 from work
                              where notified_at is null and status in ('queued', 'scheduled') and due_at <= now() limit $1) as r)
           as queued,
       (select count(*) from (select 1 from work
                              where notified_at is null and status in ('queued', 'scheduled') and due_at > now() limit $1) as r)
           as scheduled,
       (select extract(epoch from now() - min(due_at))::double precision from (
            (select due_at from work where notified_at is null and status in ('queued', 'scheduled') and due_at <= now()
             order by due_at limit 1)
            union all
            (select due_at from work where status in ('queued', 'scheduled') and notified_at > '-infinity' order by notified_at limit $2)
            union all
            (select due_at from (select status, due_at from work order by event_id limit $2) as first
             where status in ('queued', 'scheduled') and due_at <= now())) as oldest) as oldest_s;

-- name: budget
-- Of today's budget, the most that a tenant has used: without what workers hold ready for calls to come.
select coalesce(max(b.drawn_usd - coalesce(ready.usd, 0)), 0)::double precision as used_usd
from budgets b
left join (select tenant, sum(drawn_usd - used_usd) as usd from allowances where day = $1 group by tenant) as ready using (tenant)
where b.day = $1;

-- name: letters
select reason, count(*) as count
from (select reason from dead_letters where at > now() - interval '1 hour' order by at desc limit $1) as latest
group by reason;

-- name: living
-- Workers whose lease holds, with what they last reported.
select w.version, w.state, w.reason, w.slots, w.in_flight, m.ordinal,
       m.series,
       extract(epoch from clock_timestamp() - w.beat_at)::double precision as beat_age_s
from workers w left join worker_metrics m using (worker)
where w.state not in ('dead', 'stopped') and w.lease_until >= now()
order by w.started_at desc limit $1;

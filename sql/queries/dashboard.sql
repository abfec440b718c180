-- name: counts
-- Bounded: at most $2 open events, and those ended among the latest $3, are counted.
select true as open, status, count(*) as n
from (select status from work where tenant = $1 limit $2) as some_open group by status
union all
select false, status, count(*)
from (select status from events where tenant = $1 order by event_id desc limit $3) as latest
where status <> 'open' group by status;

-- name: simulated
-- Whether a worker says that it answers for models itself.
select exists (select 1 from workers where simulated and state not in ('dead', 'stopped'));

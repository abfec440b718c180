-- name: of_host
select pid, state, reason, lease_until >= clock_timestamp() as held,
       extract(epoch from clock_timestamp() - beat_at)::double precision as beat_age_s
from workers where host = $1 and state not in ('dead', 'stopped') and ($2::integer is null or pid = $2)
order by beat_at desc limit 100;

-- name: workers
select worker, ordinal, host, pid, version, started_at, beat_at, lease_until, lease_until >= clock_timestamp() as alive,
       state, reason, slots, in_flight, pipelines, simulated,
       lag_s, breakers
from workers left join worker_metrics using (worker) where state not in ('dead', 'stopped') order by started_at;

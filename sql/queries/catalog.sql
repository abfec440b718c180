-- name: stats
-- Calls of a tenant between two times, by prompt version; those under way don't count. Cost is what was charged.
select prompt as name, version,
       count(*) as calls,
       count(*) filter (where outcome = 'ok') as ok,
       count(*) filter (where outcome = 'invalid') as invalid,
       count(*) filter (where outcome = 'unknown') as unknown,
       count(*) filter (where outcome not in ('ok', 'invalid', 'unknown')) as failed,
       count(*) filter (where simulated) as simulated,
       sum(tokens_in)::bigint as tokens_in,
       sum(tokens_out)::bigint as tokens_out,
       sum(cost_usd) as cost_usd,
       percentile_disc(0.5) within group (order by ms) filter (where outcome in ('ok', 'invalid')) as p50_ms,
       percentile_disc(0.95) within group (order by ms) filter (where outcome in ('ok', 'invalid')) as p95_ms
from calls
where tenant = $1 and at >= $2 and at < $3 and outcome <> 'open' and ($4::text is null or prompt = $4)
group by prompt, version
order by prompt, version;

-- name: pipelines
select name, coalesce(type, after_type) as type, after from pipelines order by name;

-- name: pipeline
select name, coalesce(type, after_type) as type, version, nodes, edges, after,
       array(select name from pipelines f where f.after = p.name order by name) as follow_ups
from pipelines p where name = $1;

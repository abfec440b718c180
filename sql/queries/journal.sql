-- name: keep
-- Memory is refused to a stale claim: whoever gets no row back does not hold the event any more. `status || ''`: by key, not
-- by the index on running rows (see settle). The limit keeps the look-up inside the lateral join.
with given as (
    select * from unnest($1::uuid[], $2::integer[], $3::bigint[], $4::text[], $5::timestamptz[], $6::json[],
                         $7::boolean[])
        with ordinality as g (event_id, run, claim, step, at, entry, took_state, n)
), held as (
    select g.* from given g cross join lateral (
        select 1 from work where work.event_id = g.event_id and work.claim = g.claim and work.status || '' = 'running' limit 1) as w
), stored as (
    insert into journal (event_id, run, step, at, entry, took_state)
    select event_id, run, step, at, entry, took_state from held
    on conflict (event_id, run, step) do nothing
)
select n from held;

-- name: recall
-- What is remembered of an event: results of this run's steps, replies to calls (of a call made twice, the last), and
-- what this run has cost.
select 'step' as kind, step, null::text as asked, null::integer as ordinal, entry::text as told, null::double precision as usd
from journal where event_id = $1 and run = $2
union all
(select distinct on (step, asked, ordinal) 'call', step, asked, ordinal, reply, null
 from calls where event_id = $1 and memory order by step, asked, ordinal, claim desc)
union all
select 'spent', '', null, null, null, sum(cost_usd) from calls where event_id = $1 and run = $2;

-- name: states
select type, value from states where tenant = $1 and key = $2;

-- name: result_of
-- Of that run, also where a replay has superseded it.
select result from events where event_id = $1 and run = $2 and status = 'succeeded'
union all
select result from runs where event_id = $1 and run = $2 and status = 'succeeded';

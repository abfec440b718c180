-- name: keep
-- Memory is refused to a stale claim: who gets its n back held the event when its entries were committed. The lock sees to
-- that: a claim can't be raised between the look at it and the commit, or what another worker has read of the journal
-- would change behind it. All entries of one n belong to one claim. `status || ''`: by key, not by the
-- index on running rows (see settle).
with entries as (
    select * from unnest($1::bigint[], $2::uuid[], $3::integer[], $4::bigint[], $5::text[], $6::timestamptz[], $7::json[],
                         $8::boolean[])
        as g (n, event_id, run, claim, step, at, entry, took_state)
), held as (
    select g.* from entries g cross join lateral (
        select 1 from work where work.event_id = g.event_id and work.claim = g.claim and work.status || '' = 'running'
        for share) as w
), stored as (
    insert into journal (event_id, run, step, at, entry, took_state)
    select event_id, run, step, at, entry, took_state from held
    on conflict (event_id, run, step) do nothing
)
select distinct n from held;

-- name: recall
-- What is remembered of an event: results of this run's steps, replies to calls (of a call made twice, the last), and
-- what this run has cost.
select 'step' as kind, step, null::text as question_hash, null::integer as ordinal, entry::text as stored_text,
       null::double precision as usd
from journal where event_id = $1 and run = $2
union all
(select distinct on (step, question_hash, ordinal) 'call', step, question_hash, ordinal, reply, null
 from calls where event_id = $1 and memory order by step, question_hash, ordinal, claim desc)
union all
select 'spent', '', null, null, null, sum(cost_usd) from calls where event_id = $1 and run = $2;

-- name: states
select type, value from states where tenant = $1 and partition_key = $2;

-- name: result_of
-- Of that run, also where a replay has superseded it.
select result from events where event_id = $1 and run = $2 and status = 'succeeded'
union all
select result from runs where event_id = $1 and run = $2 and status = 'succeeded';

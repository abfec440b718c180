-- name: keep
-- Memory is refused to a stale claim: whoever gets no row back does not hold the event any more.
with given as (
    select * from unnest($1::uuid[], $2::integer[], $3::bigint[], $4::text[], $5::timestamptz[], $6::json[])
        with ordinality as g (event_id, run, claim, step, at, entry, n)
), held as (
    select g.* from given g cross join lateral (
        select 1 from work where work.event_id = g.event_id and work.claim = g.claim and work.status = 'running') as w
), stored as (
    insert into journal (event_id, run, step, at, entry) select event_id, run, step, at, entry from held
    on conflict (event_id, run, step) do nothing
)
select n from held;

-- name: recall
select step, entry from journal where event_id = $1 and run = $2;

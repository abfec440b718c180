-- name: standing
-- `before`: the last claim of earlier runs.
select coalesce(w.status, e.status) as status, coalesce(w.run, e.run) as run, coalesce(w.claim, e.claim) as claim,
       coalesce((select max(a.claim) from attempts a where a.event_id = e.event_id and a.run < coalesce(w.run, e.run)), 0) as before
from events e left join work w using (event_id)
where e.event_id = $1 and e.tenant = $2;

-- name: standings
select e.event_id, coalesce(w.status, e.status) as status, coalesce(w.run, e.run) as run, coalesce(w.claim, e.claim) as claim
from unnest($1::uuid[]) as f (event_id) join events e using (event_id) left join work w using (event_id);

-- name: replies
-- Streamed replies that a retry would get back, behind one position and before another, in order: at most $6 of them, of $7 bytes
-- together, or the first alone where it has more. `total`: how many there would be without the bound of bytes.
select * from (
    select *, count(*) over () as total, row_number() over places as nth,
           sum(200 + octet_length(step) + octet_length(reply)) over places as bytes
    from (select claim, told_no as n, step, asked, ordinal, call_id, reply from calls
          where event_id = $1 and told_no is not null and memory and (claim, told_no) > ($2::bigint, $3::integer)
            and (claim, told_no) < ($4::bigint, $5::integer)
          order by claim, told_no limit $6) as next
    window places as (order by claim, n)) as sized
where bytes <= $7 or nth = 1
order by nth;

-- name: steps
select claim, steps from attempts where event_id = $1 and run = $2 and claim between $3::bigint and $4::bigint order by claim;

-- name: result
select result from events where event_id = $1;

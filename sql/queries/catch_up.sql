-- name: replies
-- Streamed replies that a retry would get back, behind one position and before another, in order: at most $6 of them, of $7 bytes
-- together, or the first alone where it has more. `total`: how many there would be without the bound of bytes.
select * from (
    select *, count(*) over () as total, row_number() over places as nth,
           sum(200 + octet_length(step) + octet_length(reply)) over places as bytes
    from (select claim, feed_n as n, step, question_hash, ordinal, call_id, reply from calls
          where event_id = $1 and feed_n is not null and memory and (claim, feed_n) > ($2::bigint, $3::integer)
            and (claim, feed_n) < ($4::bigint, $5::integer)
          order by claim, feed_n limit $6) as next
    window places as (order by claim, n)) as sized
where bytes <= $7 or nth = 1
order by nth;

-- name: steps
select claim, steps from attempts where event_id = $1 and run = $2 and claim between $3::bigint and $4::bigint order by claim;

-- name: result
select result from events where event_id = $1;

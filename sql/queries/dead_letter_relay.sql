-- name: number_letters
-- The one relay draws the ids of the dead stream, so that they grow in the order in which they are written.
update dead_letters d set relay_no = drawn.relay_no
from (select dead_id, nextval('relay') as relay_no
      from (select dead_id from dead_letters where not relayed and relay_no is null order by dead_no limit $1) as waiting) as drawn
where d.dead_id = drawn.dead_id;

-- name: unrelayed
-- At most $1, and no more than $2 bytes of events but for the first: a stranger may have said all of them as large as may be.
select dead_id, relay_no, tenant, event_id, reason, error, attempts, event
from (select *, sum(octet_length(event)) over (order by relay_no) as bytes, row_number() over (order by relay_no) as nth
      from (select * from dead_letters where not relayed and relay_no is not null order by relay_no limit $1) as first) as d
where bytes <= $2 or nth = 1
order by relay_no;

-- name: relayed
update dead_letters set relayed = true where dead_id = any ($1::uuid[]);

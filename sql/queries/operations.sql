-- name: mailbox_of
select partitionkey as partition_key, status from events where event_id = $1 and tenant = $2;

-- name: mailbox
select count(*) as length from work where tenant = $1 and partition_key = $2;

-- name: states_of
select type, value from states where tenant = $1 and partition_key = $2 order by type;

-- name: in_hand
-- The head of a mailbox: what runs, or what everything behind it waits for.
select w.event_id, e.type, w.status, w.attempts, w.due_at, w.claimed_at, w.worker, w.cause
from work w join events e using (event_id)
where w.tenant = $1 and w.partition_key = $2 and w.mailbox_seq is not null order by w.mailbox_seq limit 1;

-- name: mailboxes_of
select distinct tenant, partitionkey as partition_key from events
where event_id = any ($1::uuid[]) and tenant = $2 and partitionkey is not null;

-- name: answered
-- Letters that named no event and have become one.
with deleted as (
    delete from dead_letters where dead_id = any ($1::uuid[]) and tenant = $2 returning dead_id, tenant, reason
)
insert into operations (op_id, tenant, actor, action, detail)
select gen_random_uuid(), tenant, $3, 'replay', json_build_object('dead_id', dead_id, 'reason', reason) from deleted;

-- name: replay
-- A new run of each of $1, behind everything in its mailbox, in that order; the old run is kept, and what it remembers is
-- carried over; where $4 is given, only from before that moment, not of the step $5 and not of the steps around it (their
-- keys and `>` are what its key begins with). Of those in $6 the states are set back to what they were before the old run; of
-- others it is carried over only up to the first step that took an actor's state: other events may have changed that in between,
-- so what was made of it is no result any more. $3 is who asked.
with old as (
    select * from events where event_id = any ($1::uuid[]) and tenant = $2 and status in ('succeeded', 'dead', 'cancelled')
    order by event_id for update
), former_runs as (
    insert into runs (event_id, run, status, attempts, pipeline, worker, result, error, finished_at)
    select event_id, run, status, attempts, pipeline, worker, result, error, finished_at from old
), again as (
    update events e
    set status = 'open', run = o.run + 1, attempts = 0, result = null, error = null, finished_at = null, worker = null
    from old o where e.event_id = o.event_id
    returning e.event_id, e.tenant, e.partitionkey, e.run, e.claim
), queued as (
    insert into work (event_id, tenant, partition_key, mailbox_seq, status, run, claim, due_at, notified_at, notified_stream)
    select event_id, tenant, partitionkey, nextval('mailbox_seq'), 'queued', run, claim, clock_timestamp(), clock_timestamp(), 'work'
    from again order by array_position($1::uuid[], event_id)
), journal_rows as (
    insert into journal (event_id, run, step, at, entry, took_state)
    select j.event_id, a.run, j.step, j.at, j.entry, j.took_state
    from again a cross join lateral (
        select journal.*, min(at) filter (where took_state) over () as took_at
        from journal where journal.event_id = a.event_id and journal.run = a.run - 1) as j
    where ($4::timestamptz is null or (j.at < $4 and not starts_with($5::text, j.step || '>')))
      and (j.took_at is null or j.at < j.took_at or a.event_id = any ($6::uuid[]))
), set_back as (
    update states s set value = s.before, set_by = a.event_id || '/' || a.run, written_at = clock_timestamp()
    from again a
    where a.event_id = any ($6::uuid[]) and s.tenant = a.tenant and s.partition_key = a.partitionkey
      and s.event_id = a.event_id and s.set_by = a.event_id || '/' || (a.run - 1) and s.before is not null
), unset as (
    delete from states s using again a
    where a.event_id = any ($6::uuid[]) and s.tenant = a.tenant and s.partition_key = a.partitionkey
      and s.event_id = a.event_id and s.set_by = a.event_id || '/' || (a.run - 1) and s.before is null
), dropped as (
    update calls c set memory = false from again a
    where c.event_id = a.event_id and c.memory and (c.at >= $4::timestamptz or c.step = $5::text)
), answered as (
    delete from dead_letters d using again a where d.event_id = a.event_id
), operation as (
    insert into operations (op_id, tenant, actor, action, event_id, detail)
    select gen_random_uuid(), tenant, $3, 'replay', event_id, json_build_object('run', run) from again
)
select event_id, run from again;

-- name: unmoved
-- Of these ended events those whose actors' states are as their last runs found and left them: nothing else is in the mailbox,
-- and nobody else has written a state since (an older release changes event_id alone). Of those of one mailbox only the first of $1: it will run before the others.
select e.event_id
from (select distinct on (partitionkey) * from events
      where event_id = any ($1::uuid[]) and tenant = $2 and partitionkey is not null and status in ('succeeded', 'dead', 'cancelled')
      order by partitionkey, array_position($1::uuid[], event_id)) as e
where not exists (select 1 from work w where w.tenant = e.tenant and w.partition_key = e.partitionkey and w.mailbox_seq is not null)
  and not exists (
      select 1 from states s
      where s.tenant = e.tenant and s.partition_key = e.partitionkey
        and (s.event_id, s.set_by) is distinct from (e.event_id, e.event_id || '/' || e.run)
        and (s.event_id = e.event_id or s.written_at > e.finished_at));

-- name: stale_steps
-- Of a success that took an actor's state: what a replay from the moment $3 would otherwise carry over, from the first step on that
-- took it. No row: it took none.
select array(select j.step from journal j
             where j.event_id = e.event_id and j.run = e.run and j.at >= taken.at and ($3::timestamptz is null or j.at < $3)
             order by j.at, j.step) as steps
from events e
cross join lateral (select min(at) as at from journal where event_id = e.event_id and run = e.run and took_state) as taken
where e.event_id = $1 and e.tenant = $2 and e.status = 'succeeded' and taken.at is not null;

-- name: began
-- When a step of the last run began, as the journal has it, or as its last try did.
select coalesce(
    (select j.at from journal j join events using (event_id, run) where event_id = $1 and tenant = $3 and j.step = $2),
    (select max((step ->> 'at')::timestamptz)
     from events join attempts a using (event_id) cross join lateral json_array_elements(a.steps) as step
     where event_id = $1 and tenant = $3 and step ->> 'step' = $2));

-- name: cancel
-- Cancelling is a takeover: the row is gone and the claim raised, so nothing a run does afterwards counts. By $3, or by
-- nobody who goes on record.
with stopped as (
    delete from work where event_id = any (array(
        select event_id from work where event_id = any ($1::uuid[]) and tenant = $2 order by event_id for update))
    returning event_id, tenant, partition_key, status, run, attempts, claim, worker, claimed_at
), ended as (
    update events e set status = 'cancelled', finished_at = clock_timestamp(), worker = s.worker, attempts = s.attempts, claim = s.claim + 1
    from stopped s where e.event_id = s.event_id
), facts as (
    insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome)
    select event_id, claim, run, attempts + 1, worker, claimed_at, clock_timestamp(), 'cancelled'
    from stopped where status = 'running'
    on conflict (event_id, claim) do nothing
), operation as (
    insert into operations (op_id, tenant, actor, action, event_id)
    select gen_random_uuid(), tenant, $3::text, 'cancel', event_id from stopped where $3::text is not null
)
select event_id, tenant, partition_key, status from stopped;

-- name: dead_letters
-- Newest first. Up to $8 letters fit, `among` in number; returns as many as have $9 bytes in their columns without a bound, but
-- at least one.
select * from (
    select *, count(*) over () as among, row_number() over (order by dead_no desc) as nth,
           sum(octet_length(event) + octet_length(error::text)) over (order by dead_no desc) as bytes
    from (select dead_id, dead_no, event_id, type, reason, error, attempts, at, event from dead_letters
          where tenant = $1
            and ($2::text is null or type = $2)
            and ($3::text is null or reason = $3)
            and ($4::timestamptz is null or at >= $4)
            and ($5::timestamptz is null or at < $5)
            and ($6::uuid[] is null or dead_id = any ($6))
            and ($7::bigint is null or dead_no < $7)
          order by dead_no desc
          limit $8) as fit) as sized
where bytes <= $9 or nth = 1
order by nth;

-- name: oldest_letters
-- Of those that fit the first $9 behind the number $7, up to the number $8, and no more than $10 bytes of what must be taken
-- again, but for the first: that is only what never was an event. Where $8 is null, up to the last one that is there
-- now: with how many that is, and its number.
with fit as not materialized (
    select dead_id, dead_no, event_id, case when event_id is null then event end as event from dead_letters
    where tenant = $1
      and ($2::text is null or type = $2)
      and ($3::text is null or reason = $3)
      and ($4::timestamptz is null or at >= $4)
      and ($5::timestamptz is null or at < $5)
      and ($6::uuid[] is null or dead_id = any ($6))
      and dead_no > $7 and ($8::bigint is null or dead_no <= $8)
)
select dead_id, dead_no, event_id, event, case when $8 is null then (select count(*) from fit) end as matched,
       coalesce($8, (select max(dead_no) from fit)) as last
from (select *, sum(octet_length(event)) over (order by dead_no) as bytes, row_number() over (order by dead_no) as nth
      from (select * from fit order by dead_no limit $9) as first) as bounded
where coalesce(bytes, 0) <= $10 or nth = 1
order by dead_no;

-- name: discard
with deleted as (
    delete from dead_letters where dead_id = any ($1::uuid[]) and tenant = $2 returning dead_id, event_id, tenant, reason
), operation as (
    insert into operations (op_id, tenant, actor, action, event_id, detail)
    select gen_random_uuid(), tenant, $3, 'discard', event_id, json_build_object('dead_id', dead_id, 'reason', reason) from deleted
)
select dead_id from deleted;

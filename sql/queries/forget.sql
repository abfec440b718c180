-- name: page
-- Reads a page, the tenant's next $6 events behind $5, of this key ($2) where one is given, and returns the first $7 of them
-- that have this subject ($3) or source ($4). Subjects have no index: each page of events is a statement of its own.
with page as materialized (
    select event_id, source, attributes from events
    where tenant = $1 and event_id > $5 and ($2::text is null or partitionkey = $2)
    order by event_id limit $6
), fit as (
    select event_id from page
    where ($3::text is null or attributes ->> 'subject' = $3) and ($4::text is null or source = $4)
    order by event_id limit $7
)
select array(select event_id from fit order by event_id) as ids,
       (select event_id from page order by event_id desc limit 1) as last, (select count(*) from page) = $6 as more;

-- name: children
-- The children of these events. $5 leaves out those that fit $2 to $4 themselves, which `page` returns.
select event_id from events
where parent = any ($1::uuid[])
  and not ($5::boolean and ($2::text is null or partitionkey is not distinct from $2)
           and ($3::text is null or attributes ->> 'subject' is not distinct from $3) and ($4::text is null or source = $4))
order by event_id limit $6;

-- name: at_rest
-- Locks those of these events that exist, and says of each whether no worker has a hand in it any more: a worker learns of a
-- stop and lets go within $3, and books a call that is under way when the answer comes.
select e.event_id,
       not exists (select 1 from work w where w.event_id = e.event_id)
       and not exists (select 1 from calls c where c.event_id = e.event_id and c.outcome = 'open')
       and not exists (select 1 from attempts a where a.event_id = e.event_id and a.outcome = 'cancelled'
                       and a.finished_at > clock_timestamp() - $3::interval) as rests
from events e where e.event_id = any ($1::uuid[]) and e.tenant = $2 order by e.event_id for update of e;

-- name: actors
-- The actors whose memory these events may be in: an event was the last that wrote it, or one of its steps read it.
select distinct e.partitionkey as partition_key from events e
where e.event_id = any ($1::uuid[])
  and exists (select 1 from states s where s.tenant = e.tenant and s.partition_key = e.partitionkey
              and (s.event_id = e.event_id
                   or exists (select 1 from journal j where j.event_id = e.event_id and j.took_state)));

-- name: heads_of
-- The first in each of these mailboxes, locked, so that nobody claims it before this transaction ends.
select head.event_id, head.status, k.partition_key from unnest($2::text[]) as k (partition_key)
cross join lateral (
    select w.event_id, w.status from work w
    where w.tenant = $1 and w.partition_key = k.partition_key and w.mailbox_seq is not null
    order by w.mailbox_seq limit 1 for update) as head;

-- name: scrub
-- Deletes these events and all rows about them. The operations stay on record, without the event's id.
with w as (delete from work where event_id = any ($1::uuid[]) returning 1),
     a as (delete from attempts where event_id = any ($1::uuid[]) returning 1),
     c as (delete from calls where event_id = any ($1::uuid[]) returning 1),
     j as (delete from journal where event_id = any ($1::uuid[]) returning 1),
     r as (delete from runs where event_id = any ($1::uuid[]) returning 1),
     l as (delete from dead_letters where event_id = any ($1::uuid[]) returning 1),
     d as (delete from documents where event_id = any ($1::uuid[]) returning 1),
     o as (update operations set event_id = null where event_id = any ($1::uuid[]) returning 1),
     e as (delete from events where event_id = any ($1::uuid[]) returning 1)
select (select count(*) from e) as events, (select count(*) from w) as work, (select count(*) from a) as attempts,
       (select count(*) from c) as calls, (select count(*) from j) as journal, (select count(*) from r) as runs,
       (select count(*) from l) as dead_letters, (select count(*) from d) as documents, (select count(*) from o) as operations;

-- name: there
select (select count(*) from events where event_id = any ($1::uuid[])) as events,
       (select count(*) from work where event_id = any ($1::uuid[])) as work,
       (select count(*) from attempts where event_id = any ($1::uuid[])) as attempts,
       (select count(*) from calls where event_id = any ($1::uuid[])) as calls,
       (select count(*) from journal where event_id = any ($1::uuid[])) as journal,
       (select count(*) from runs where event_id = any ($1::uuid[])) as runs,
       (select count(*) from dead_letters where event_id = any ($1::uuid[])) as dead_letters,
       (select count(*) from documents where event_id = any ($1::uuid[])) as documents,
       (select count(*) from operations where event_id = any ($1::uuid[])) as operations;

-- name: count_states
select count(*) from states where tenant = $1 and partition_key = any ($2::text[]);

-- name: delete_states
with gone as (delete from states where tenant = $1 and partition_key = any ($2::text[]) returning 1) select count(*) from gone;

-- name: delete_derived
-- The result of a step that read an actor's memory may repeat it, as may those of the later steps. A replay of them would not
-- have the memory any more either.
with gone as (
    delete from journal where ctid = any (array(
        select j.ctid from events e join journal j using (event_id)
        where e.tenant = $1 and e.partitionkey = any ($2::text[])
          and j.at >= (select min(t.at) from journal t where t.event_id = j.event_id and t.run = j.run and t.took_state)
        limit $3))
    returning 1
)
select count(*) from gone;

-- name: count_derived
select j.event_id, count(*) from events e join journal j using (event_id)
where e.tenant = $1 and e.partitionkey = any ($2::text[])
  and j.at >= (select min(t.at) from journal t where t.event_id = j.event_id and t.run = j.run and t.took_state)
group by j.event_id;

-- name: document_page
-- The tenant's next $6 documents behind ($2, $3), and whether the field $4 of their metadata has the text $5.
select collection, id, event_id, coalesce(metadata ->> $4::text = $5, false) as fits from documents
where tenant = $1 and (collection, id) > ($2::text, $3::text) order by collection, id limit $6;

-- name: delete_documents
with gone as (
    delete from documents where tenant = $1 and (collection, id) in (select * from unnest($2::text[], $3::text[])) returning 1
)
select count(*) from gone;

-- name: letter_page
-- Dead letters that never were an event: only their body says whose they are.
select dead_id, dead_no, event from dead_letters
where tenant = $1 and event_id is null and dead_no > $2 order by dead_no limit $3;

-- name: delete_letters
with gone as (delete from dead_letters where dead_id = any ($1::uuid[]) returning 1) select count(*) from gone;

-- name: begin_forget
-- The record has the kind of the target, not its text, which would be a trace.
insert into operations (op_id, tenant, actor, action, detail) values ($1, $2, $3, 'forget', json_build_object('by', $4::text));

-- name: end_forget
update operations set detail = $2 where op_id = $1;

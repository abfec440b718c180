-- name: old_events
-- Ids grow with time, so that only the oldest rows are looked at, each once in a turn ($4: up to where it has come). What
-- has a dead letter stays as long as that: it must not take the place of others either.
select event_id from events
where event_id < $1 and event_id > $4 and status <> 'open' and finished_at < clock_timestamp() - make_interval(days => $2)
  and not exists (select 1 from dead_letters d where d.event_id = events.event_id)
order by event_id limit $3;

-- name: forget
-- Ended events and all that is about them; an event on its way is never among them: the status is checked under the lock.
with old as (
    select event_id from events where event_id = any ($1::uuid[]) and status <> 'open'
      and not exists (select 1 from dead_letters d where d.event_id = events.event_id)
    order by event_id for update skip locked
), a as (delete from attempts where event_id in (select event_id from old)),
   c as (delete from calls where event_id in (select event_id from old)),
   j as (delete from journal where event_id in (select event_id from old)),
   r as (delete from runs where event_id in (select event_id from old))
delete from events where event_id in (select event_id from old);

-- name: forget_letters
delete from dead_letters where dead_id in (
    select dead_id from dead_letters where relayed and at < clock_timestamp() - make_interval(days => $1) order by at limit $2);

-- name: oldest_relayed
-- The number of the oldest entry that stays in the dead stream; where there is no letter any more, a number behind the last.
select coalesce((select min(relay_no) from dead_letters where relay_no is not null), (select last_value + 1 from relay));

-- name: forget_operations
delete from operations where op_id = any (array(
    select op_id from operations where at < clock_timestamp() - make_interval(days => $1) limit $2));

-- name: forget_states
-- Spares the states of actors with events in `work`: an event that runs has read them, and would write them back.
delete from states where ctid = any (array(
    select s.ctid from states s
    where s.written_at < clock_timestamp() - make_interval(days => $1)
      and not exists (select 1 from work w where w.tenant = s.tenant and w.partition_key = s.partition_key)
    limit $2 for update skip locked));

-- name: forget_documents
delete from documents where ctid = any (array(
    select ctid from documents where written_at < clock_timestamp() - make_interval(days => $1)
    limit $2 for update skip locked));

-- name: forget_workers
delete from workers w where state in ('dead', 'stopped') and lease_until < clock_timestamp() - interval '1 day'
  and not exists (select 1 from work where work.worker = w.worker and work.status = 'running');

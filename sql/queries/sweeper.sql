-- name: rescue
-- Leases that have run out free the claims held under them; the loss is a fact, not an attempt. A loss counts as a crash only
-- where the event was its worker's one poison suspect: nobody else can have caused it. From the second loss in a row on, the
-- event waits before it comes again.
with gone as (
    update workers set state = 'dead' where state not in ('dead', 'stopped') and lease_until < clock_timestamp()
    returning worker
), orphaned as (
    select w.event_id, w.claim, w.run, w.attempts, w.worker, w.claimed_at, w.consecutive_losses
    from work w
    where w.status = 'running'
      and (w.worker in (select worker from gone)
           or w.worker in (select worker from workers where state in ('dead', 'stopped')))
    order by w.event_id for update of w skip locked
), judged as (
    select o.*, o.consecutive_losses >= 1
                and count(*) filter (where o.consecutive_losses >= 1) over (partition by o.worker) = 1 as is_crash
    from orphaned o
), freed as (
    update work w
    set status = 'queued', worker = null, consecutive_losses = w.consecutive_losses + 1,
        crash_count = w.crash_count + j.is_crash::integer,
        due_at = clock_timestamp() + case when j.consecutive_losses = 0 then interval '0'
                                          else make_interval(secs => 2 ^ least(j.consecutive_losses, 5)) end,
        notified_at = case when j.consecutive_losses = 0 then clock_timestamp() end, notified_stream = 'front',
        cause = 'its worker was lost'
    from judged j where w.event_id = j.event_id
    returning w.event_id, w.consecutive_losses
), facts as (
    insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome)
    select event_id, claim, run, attempts + 1, worker, claimed_at, clock_timestamp(), 'lost' from orphaned
    on conflict (event_id, claim) do nothing
)
select event_id, consecutive_losses from freed;

-- name: overdue
-- A run that its own worker, alive, could not end: 15 s past its deadline it is taken from it, and it was an attempt. (A
-- run whose worker is gone was lost, whatever its deadline: that is the rescue's, and no attempt.)
with late as (
    select w.event_id, w.claim, w.run, w.attempts, w.worker, w.claimed_at from work w
    where w.status = 'running' and w.deadline_at < clock_timestamp() - interval '15 s'
      and exists (select 1 from workers holder where holder.worker = w.worker and holder.state not in ('dead', 'stopped')
                  and holder.lease_until >= clock_timestamp())
    order by w.event_id for update of w skip locked
), freed as (
    update work w
    set status = 'scheduled', worker = null, attempts = w.attempts + 1, due_at = clock_timestamp(), notified_at = null,
        cause = 'past its deadline, and its worker could not end it'
    from late l where w.event_id = l.event_id
    returning w.event_id
)
insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome, detail)
select event_id, claim, run, attempts + 1, worker, claimed_at, clock_timestamp(), 'failed',
       json_build_object('kind', 'deadline', 'message', 'the run went past its deadline, and its worker could not end it',
                         'step', null, 'at', clock_timestamp(), 'where', null)
from late
on conflict (event_id, claim) do nothing;

-- name: bury
-- What can't be tried again: N crash_count ($1) end as a crash loop, and attempts spent on runs that nobody could end, as a
-- deadline. $2 draws the ids of the letters.
with buried as (
    select w.event_id, e.type, w.tenant, w.partition_key, w.claim, w.run, w.attempts, w.cause,
           case when w.crash_count >= $1::integer then 'crash_loop' else 'deadline' end as reason
    from work w
    join events e using (event_id)
    left join pipelines p on case when e.follow_up is null then p.type = e.type else p.name = e.follow_up end
    where w.status in ('queued', 'scheduled')
      and (w.crash_count >= $1::integer or (w.cause like 'past its deadline%' and w.attempts >= coalesce(p.attempts_max, 5)))
    order by w.event_id limit cardinality($2::uuid[]) for update of w skip locked
), verdicts as (
    select l.*, ($2::uuid[])[row_number() over ()] as dead_id,
           json_build_object('kind', l.reason, 'step', null, 'at', clock_timestamp(), 'where', null, 'message',
                             case when l.reason = 'deadline' then 'its runs went past their deadline and could not be ended'
                                  when l.cause like 'its run came back%' then 'its runs came back without an outcome; the last: '
                                       || coalesce(last.message, 'nobody knows why')
                                  else 'its worker was lost each time it ran this event alone' end) as error
    from buried l
    cross join lateral (
        select max(detail ->> 'message') as message from attempts a where a.event_id = l.event_id and a.claim = l.claim) as last
), closed as (
    delete from work w using verdicts t where w.event_id = t.event_id
), ended as (
    update events e
    set status = 'dead', error = t.error, finished_at = clock_timestamp(), attempts = t.attempts, claim = t.claim
    from verdicts t where e.event_id = t.event_id
), letters as (
    insert into dead_letters (dead_id, origin, tenant, event_id, type, reason, error, attempts, event)
    select t.dead_id, t.event_id || '/' || t.run, e.tenant, e.event_id, e.type, t.reason, t.error, t.attempts,
           left((jsonb_strip_nulls(jsonb_build_object('specversion', '1.0', 'id', e.id, 'source', e.source, 'type', e.type,
                                                      'partitionkey', e.partitionkey))
                 || e.attributes::jsonb - 'extensions' || coalesce(e.attributes::jsonb -> 'extensions', '{}'))::text, -1)
               || ', "data": ' || e.data || '}'
    from verdicts t join events e using (event_id)
    on conflict (origin) do nothing
)
select event_id, type, tenant, partition_key, reason from verdicts;

-- name: unknown_claims
-- What Postgres says this worker runs, and it does not hold under this claim ($2 and $3 are what it holds; the event it may hold
-- under an older claim), handed back, uncharged. Each counts as a crash, since nobody knows what became of it, but for those of $4:
-- their claims' replies got lost, so that they were never run. $5, $6 and $7 say of some events and claims why. An event whose
-- worker lives is not suspected of having ended it.
with unknown as (
    select w.event_id, w.claim, w.run, w.attempts, w.claimed_at, w.event_id <> all ($4::uuid[]) as is_crash, why.error
    from work w
    left join unnest($5::uuid[], $6::bigint[], $7::json[]) as why (event_id, claim, error)
        on why.event_id = w.event_id and why.claim = w.claim
    where w.worker = $1 and w.status = 'running' and w.claimed_at < clock_timestamp() - interval '5 s'
      and not exists (select 1 from unnest($2::uuid[], $3::bigint[]) as h (event_id, claim)
                      where h.event_id = w.event_id and h.claim = w.claim)
    order by w.event_id for update of w skip locked
), freed as (
    update work w
    set status = 'queued', worker = null, due_at = clock_timestamp(), notified_at = clock_timestamp(), notified_stream = 'front',
        consecutive_losses = 0, crash_count = w.crash_count + u.is_crash::integer,
        cause = case when u.is_crash then 'its run came back without an outcome' end
    from unknown u where w.event_id = u.event_id
), facts as (
    insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome, detail)
    select event_id, claim, run, attempts + 1, $1, claimed_at, clock_timestamp(), 'handed_back',
           case when is_crash then coalesce((error::jsonb || jsonb_build_object('at', clock_timestamp()))::json, json_build_object(
               'kind', 'Unsettled', 'message', 'the run came back without an outcome', 'step', null, 'at', clock_timestamp(),
               'where', null)) end
    from unknown
    on conflict (event_id, claim) do nothing
)
select event_id, claim, is_crash from unknown;

-- name: move_deadlines
-- For as long as its own worker kept a run waiting ($3, by event and claim), its deadline stood still.
update work w set deadline_at = w.deadline_at + waits.wait
from unnest($1::uuid[], $2::bigint[], $3::interval[]) as waits (event_id, claim, wait)
where w.event_id = waits.event_id and w.claim = waits.claim and w.status = 'running';

-- name: due
-- Whether the sweeper has anything to do, and which memory of Redis was last seen: one cheap statement a second. `now()` because a
-- volatile clock can't be looked up in an index, and a million events may be due another day.
select exists (select 1 from work where notified_at is null and status in ('queued', 'scheduled') and due_at <= now())
           as unnotified,
       exists (select 1 from work where status in ('queued', 'scheduled')
                 and notified_at < greatest(now() - interval '5 s', epoch.lost_at)) as stale,
       exists (select 1 from work where mailbox_seq is null and due_at <= now()) as without_seq,
       exists (select 1 from workers where state not in ('dead', 'stopped') and lease_until < clock_timestamp())
           or exists (select 1 from work w join workers using (worker) where w.status = 'running' and state in ('dead', 'stopped'))
           as expired,
       exists (select 1 from work join workers holder using (worker)
               where status = 'running' and deadline_at < clock_timestamp() - interval '15 s'
                 and holder.state not in ('dead', 'stopped') and holder.lease_until >= clock_timestamp()) as overdue,
       exists (select 1 from dead_letters where not relayed) as unrelayed,
       exists (select 1 from (select worker from calls where outcome = 'open' union all select worker from allowances) as spenders
               where not exists (select 1 from workers w where w.worker = spenders.worker and w.state not in ('dead', 'stopped')))
           as unsettled,
       epoch.epoch
from epoch;

-- name: without_seq
select tenant, partition_key from work where mailbox_seq is null and due_at <= now() order by due_at limit 1000;

-- name: draw_mailbox_seqs
-- Keyed events that were not due draw their mailbox_seq when they are, in the order in which they became due. The first of each
-- mailbox is notified next; for those behind it there would be nothing to do, so they count as notified.
update work w set mailbox_seq = drawn.mailbox_seq, notified_at = case when drawn.nth > 1 then clock_timestamp() end,
    notified_stream = case when drawn.nth > 1 then 'work' end
from (select event_id, nextval('mailbox_seq') as mailbox_seq,
             row_number() over (partition by tenant, partition_key order by due_at, event_id) as nth
      from (select event_id, tenant, partition_key, due_at from work
            where mailbox_seq is null and due_at <= clock_timestamp()
              and (tenant, partition_key) in (select * from unnest($1::text[], $2::text[]))
            order by due_at, event_id) as due) as drawn
where w.event_id = drawn.event_id;

-- name: new_epoch
-- Compare and set: whoever sees the new memory first says when the old one was lost.
update epoch set epoch = $2, lost_at = case when epoch = '' then lost_at else clock_timestamp() end where epoch = $1;

-- name: sweep
-- Notify again of what is due, not running, and was last notified before Redis lost its memory or before the moment up to
-- which the group has read its stream ($1, $2): an entry that still waits there is never doubled. Of keyed events only the
-- head of each mailbox: those that were notified are found by stepping from key to key (work_notified_mailbox), those that were not
-- by the time at which they fell due. So a turn costs what is due, whatever runs, backs off or waits in a stream: what was
-- notified on the front stream has an index of its own (work_notified_front), since the two streams are read up to different moments.
with recursive mailboxes as (
    (select tenant, partition_key, mailbox_seq, event_id, due_at, notified_at, notified_stream from work
     where partition_key is not null and notified_at is not null and status in ('queued', 'scheduled')
     order by tenant, partition_key, mailbox_seq limit 1)
    union all
    select next.tenant, next.partition_key, next.mailbox_seq, next.event_id, next.due_at, next.notified_at, next.notified_stream
    from mailboxes m cross join lateral (
        select w.* from work w
        where w.partition_key is not null and w.notified_at is not null and w.status in ('queued', 'scheduled')
          and (w.tenant, w.partition_key) > (m.tenant, m.partition_key)
        order by w.tenant, w.partition_key, w.mailbox_seq limit 1) as next
), heads as (
    (select event_id, due_at, tenant, partition_key, mailbox_seq from work
     where partition_key is not null and mailbox_seq is not null and status in ('queued', 'scheduled')
       and notified_at is null and due_at <= now()
     order by due_at limit $3)
    union all
    (select event_id, due_at, tenant, partition_key, mailbox_seq from mailboxes
     where mailbox_seq is not null and due_at <= now()
       and notified_at < greatest((select lost_at from epoch),
                                  case notified_stream when 'front' then $2::timestamptz else $1::timestamptz end))
), due as (
    (select event_id, due_at from work
     where partition_key is null and status in ('queued', 'scheduled') and notified_at is null and due_at <= now()
     order by due_at limit $3)
    union all
    (select event_id, due_at from work
     where partition_key is null and status in ('queued', 'scheduled') and due_at <= now() and notified_stream is distinct from 'front'
       and notified_at < greatest((select lost_at from epoch), $1::timestamptz)
     order by notified_at limit $3)
    union all
    (select event_id, due_at from work
     where partition_key is null and status in ('queued', 'scheduled') and due_at <= now() and notified_stream = 'front'
       and notified_at < greatest((select lost_at from epoch), $2::timestamptz)
     order by notified_at limit $3)
    union all
    (select h.event_id, h.due_at
     from heads h left join lateral (
         select true as there from work before
         where before.tenant = h.tenant and before.partition_key = h.partition_key and before.mailbox_seq < h.mailbox_seq
         order by before.mailbox_seq limit 1) as b on true
     where b.there is null)
), locked as (
    select w.event_id
    from (select event_id from (select event_id from due order by due_at limit $3) as oldest order by event_id) as d
    cross join lateral (select event_id from work where work.event_id = d.event_id for update skip locked) as w
)
update work w set notified_at = clock_timestamp(), notified_stream = 'work'
where w.event_id = any (array(select event_id from locked))
returning w.event_id;

-- name: close_lost
-- Calls of workers that are gone stay charged at the most they may have cost; what those workers held ready goes back.
with dead as (
    select worker from (select worker from calls where outcome = 'open' union select worker from allowances) as spenders
    where not exists (select 1 from workers w where w.worker = spenders.worker and w.state not in ('dead', 'stopped'))
), lost as (
    update calls set outcome = 'unknown', cause = 'its worker was lost'
    where outcome = 'open' and worker in (select worker from dead)
    returning call_id
), gone as (
    delete from allowances where worker in (select worker from dead) returning tenant, day, drawn_usd - used_usd as usd
), back as (
    update budgets b set drawn_usd = b.drawn_usd - g.usd
    from (select tenant, day, sum(usd) as usd from gone group by 1, 2) as g
    where b.tenant = g.tenant and b.day = g.day
)
select count(*) from lost;

-- name: settle
-- The fence is the first thing that happens: whoever does not hold the claim any more changes nothing below it. Only the
-- attempt is recorded all the same: it is a fact, unless the event was forgotten. What is written with an ending names it by its index n in the batch: an
-- event may be there twice, under a claim that is lost and a new one. `status || ''`: so that the row is looked up by its key;
-- else the planner may take work_held, the index on running rows, and filter every running event for each one that is settled.
with endings as (
    select * from unnest($1::uuid[], $2::bigint[], $3::text[], $4::json[], $5::json[], $6::double precision[], $7::text[],
                         $8::text[], $9::uuid[], $10::text[], $11::integer[], $12::integer[], $13::uuid[], $14::timestamptz[],
                         $15::json[], $30::text[], $31::text[])
        with ordinality as g (event_id, claim, outcome, result, error, wait_s, cause, reason, dead_id, pipeline, run, attempt,
                              worker, started_at, steps, snooze, blocked_by, n)
), held as (
    select g.*, w.tenant, w.partition_key
    from (select * from endings order by event_id) as g
    cross join lateral (
        select tenant, partition_key from work
        where work.event_id = g.event_id and work.claim = g.claim and work.status || '' = 'running' for update) as w
), closed as (
    delete from work
    where event_id = any (array(select event_id from held where outcome in ('succeeded', 'dead')))
    returning event_id
), reopened as (
    update work w
    set status = case when h.outcome = 'handed_back' then 'queued' else 'scheduled' end,
        due_at = clock_timestamp() + make_interval(secs => coalesce(h.wait_s, 0)), cause = h.cause, worker = null,
        notified_at = null, consecutive_losses = 0, crash_count = 0,
        attempts = case when h.outcome = 'failed' then h.attempt else w.attempts end,
        snoozes = case when h.outcome = 'snoozed' then w.snoozes + (h.snooze <> 'rate_limited')::integer else 0 end,
        doubtful_snoozes = case h.snooze when 'doubtful' then w.doubtful_snoozes + 1
                                         when 'rate_limited' then w.doubtful_snoozes else 0 end,
        blocked_by = h.blocked_by
    from held h
    where w.event_id = h.event_id
      and w.event_id = any (array(select event_id from held where outcome in ('failed', 'snoozed', 'handed_back')))
), ended as (
    update events e
    set status = h.outcome, result = h.result, error = h.error, finished_at = clock_timestamp(), pipeline = h.pipeline,
        worker = h.worker, attempts = h.attempt, claim = h.claim
    from held h
    where e.event_id = h.event_id and e.event_id = any (array(select event_id from closed))
), letters as (
    insert into dead_letters (dead_id, origin, tenant, event_id, type, reason, error, attempts, event)
    select h.dead_id, h.event_id || '/' || h.run, e.tenant, e.event_id, e.type, h.reason, h.error, h.attempt,
           left((jsonb_strip_nulls(jsonb_build_object('specversion', '1.0', 'id', e.id, 'source', e.source, 'type', e.type,
                                                      'partitionkey', e.partitionkey))
                 || e.attributes::jsonb - 'extensions' || coalesce(e.attributes::jsonb -> 'extensions', '{}'))::text, -1)
               || ', "data": ' || e.data || '}'
    from held h cross join lateral (select * from events where events.event_id = h.event_id) as e
    where h.outcome = 'dead'
    on conflict (origin) do nothing
), last_writes as (
    select distinct on (h.tenant, d.collection, d.id) h.tenant, d.collection, d.id, d.text, d.embedding, d.metadata, h.event_id
    from unnest($16::bigint[], $17::text[], $18::text[], $19::text[], $20::vector[], $21::jsonb[])
        with ordinality as d (n, collection, id, text, embedding, metadata, nth)
    join held h using (n)
    order by h.tenant, d.collection, d.id, d.embedding is null, d.nth desc
), deleted_documents as (
    delete from documents d using last_writes s
    where d.tenant = s.tenant and d.collection = s.collection and d.id = s.id and s.embedding is null
), written_documents as (
    insert into documents (tenant, collection, id, text, embedding, metadata, event_id)
    select tenant, collection, id, text, embedding, metadata, event_id from last_writes
    where embedding is not null order by tenant, collection, id
    on conflict (tenant, collection, id) do update
        set text = excluded.text, embedding = excluded.embedding, metadata = excluded.metadata, event_id = excluded.event_id,
            written_at = clock_timestamp()
), journal_rows as (
    insert into journal (event_id, run, step, at, entry, took_state)
    select h.event_id, h.run, j.step, j.at, j.entry, j.took_state
    from unnest($22::bigint[], $23::text[], $24::timestamptz[], $25::json[], $26::boolean[])
        as j (n, step, at, entry, took_state)
    join held h using (n)
    on conflict (event_id, run, step) do nothing
), state_rows as (
    insert into states (tenant, partition_key, type, value, event_id, set_by)
    select h.tenant, h.partition_key, s.type, s.value, h.event_id, h.event_id || '/' || h.run
    from unnest($27::bigint[], $28::text[], $29::json[]) as s (n, type, value)
    join held h using (n)
    order by h.tenant, h.partition_key, s.type
    on conflict (tenant, partition_key, type) do update
        set before = states.value, value = excluded.value, event_id = excluded.event_id, set_by = excluded.set_by,
            written_at = clock_timestamp()
), facts as (
    insert into attempts (event_id, claim, run, attempt, worker, started_at, finished_at, outcome, detail, steps)
    select event_id, claim, run, attempt, worker, started_at, clock_timestamp(), outcome, error, steps from endings
    where n = any (array(select n from held)) or (select true from events where events.event_id = endings.event_id)
    on conflict (event_id, claim) do nothing
)
select n, tenant, case when outcome in ('succeeded', 'dead') then partition_key end as partition_key from held;

-- name: heads
-- After a commit that closed events of these mailboxes: who is first there now.
select head.event_id
from (select distinct tenant, partition_key from unnest($1::text[], $2::text[]) as k (tenant, partition_key)) as closed
cross join lateral (
    select w.event_id, w.status, w.due_at from work w
    where w.tenant = closed.tenant and w.partition_key = closed.partition_key and w.mailbox_seq is not null
    order by w.mailbox_seq limit 1) as head
where head.status in ('queued', 'scheduled') and head.due_at <= clock_timestamp();

-- name: vector_schema
-- Where pgvector's types are, for a role that may use them.
select n.nspname from pg_extension x join pg_namespace n on n.oid = x.extnamespace
where x.extname = 'vector' and has_schema_privilege(n.oid, 'usage');

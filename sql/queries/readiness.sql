-- name: read_only
select pg_is_in_recovery() or current_setting('transaction_read_only') = 'on';

-- name: probe
-- What storing an event writes, for a transaction that is rolled back.
with stored as (
    insert into events (event_id, source, id, type, data)
    values (gen_random_uuid(), '/readyz', gen_random_uuid()::text, 'readyz', '{}')
    returning event_id
)
insert into work (event_id, tenant, status, due_at) select event_id, 'default', 'queued', now() from stored;

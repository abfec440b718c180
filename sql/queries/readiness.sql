-- name: read_only
select pg_is_in_recovery() or current_setting('transaction_read_only') = 'on';

-- name: probe
-- What storing an event takes, for a transaction that is rolled back.
insert into events (event_id, source, id, type, data)
values (gen_random_uuid(), '/readyz', gen_random_uuid()::text, 'readyz', '{}');

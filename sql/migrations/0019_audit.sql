-- outside a transaction
-- Who did what, and what is known of where something came from. The old release goes on beside it: it leaves the new columns
-- empty. Each change of a table is a moment's, and is given up where it can't have the table within 5 s: a statement that
-- waits for a table holds up all who come after it.
set lock_timeout = '5s';
alter table events add column if not exists accepted_by text;    -- the prefix of the key it came with; null: not over HTTP
alter table documents add column if not exists event_id uuid;    -- of the event that wrote it last; null: over HTTP
alter table operations
    drop constraint if exists operations_action_check,
    add constraint operations_action_check
        check (action in ('replay', 'cancel', 'discard', 'create_key', 'revoke_key', 'end_sessions', 'sign_in', 'sign_out',
                          'write_documents', 'forget'))
        not valid;                                 -- every row there fits: the old list is part of the new one
insert into duties (duty) values ('long_retention') on conflict do nothing;
set lock_timeout = 0;
-- While these are built, everybody goes on writing. One that was cut off is there and of no use: it is begun anew.
drop index concurrently if exists operations_of_tenant;
create index concurrently operations_of_tenant on operations (tenant, at desc, op_id desc);
drop index concurrently if exists documents_of_event;
create index concurrently documents_of_event on documents (event_id) where event_id is not null;

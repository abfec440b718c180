-- outside a transaction
-- What a key may send. The release before this one goes on making keys without quotas, and events that none counts.
-- A column is added at once, but waits for whoever is at the table, and all others wait behind it: it gives up, to be run again.
set lock_timeout = '5s';
-- So many events in a second, a minute or an hour, as 100/s; and how many of its events may be open at a time.
alter table keys
    add column if not exists rate text check (rate ~ '^[1-9][0-9]{0,6}/(s|min|h)$'),
    add column if not exists max_open integer check (max_open > 0);
-- The prefix of the key whose `max_open` counts this event. Null for all others, which therefore cost the index nothing.
alter table work add column if not exists quota_key text;
alter table operations
    drop constraint if exists operations_action_check,
    add constraint operations_action_check
        check (action in ('replay', 'cancel', 'discard', 'create_key', 'limit_key', 'revoke_key', 'end_sessions', 'sign_in', 'sign_out',
                          'write_documents', 'forget'))
        not valid;                                 -- every row there fits: the old list is part of the new one
set lock_timeout = 0;
drop index concurrently if exists work_of_quota_key;
create index concurrently work_of_quota_key on work (quota_key) where quota_key is not null;

-- A session ends when nobody has used it for a while, not only when its time is over. One that the release before makes has
-- the time at which it was made.
alter table sessions add column used_at timestamptz not null default clock_timestamp();
create index sessions_key on sessions (key);
alter table operations
    drop constraint operations_action_check,
    add constraint operations_action_check
        check (action in ('replay', 'cancel', 'discard', 'create_key', 'revoke_key', 'end_sessions'));

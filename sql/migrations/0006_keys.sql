-- Who may come in. A key is random, so that one SHA-256 keeps it as well as a slow hash would; its first characters, the
-- prefix, are its name everywhere else.
create table keys (
    prefix       text primary key,
    tenant       text not null,
    name         text not null,
    hash         bytea not null,
    scopes       text[] not null check (scopes <@ array['ingest', 'read', 'operate', 'admin'] and scopes <> '{}'),
    created_at   timestamptz not null default clock_timestamp(),
    expires_at   timestamptz,
    last_used_at timestamptz,                      -- to the minute
    revoked_at   timestamptz
);

-- Browsers that are signed in; a session ends with its key, at the latest.
create table sessions (
    prefix     text primary key,
    hash       bytea not null,
    key        text not null references keys,
    expires_at timestamptz not null
);
create index sessions_expire on sessions (expires_at);

alter table operations
    drop constraint operations_action_check,
    add constraint operations_action_check check (action in ('replay', 'cancel', 'discard', 'create_key', 'revoke_key'));

-- A tenant's latest events, however many the others have. Where there is one tenant alone the primary key serves as well,
-- and no event pays for this one.
create index events_of_tenant on events (tenant, event_id) where tenant <> 'default';

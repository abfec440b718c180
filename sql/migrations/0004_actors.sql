-- Events that events caused, and what actors remember.
alter table events
    add column parent uuid,                        -- the event whose settle accepted this one
    add column reaction text;                      -- the pipeline that shall run it, where that is not the one on its type

alter table journal add column took_state boolean not null default false;

alter table pipelines
    alter column type drop not null,               -- null: a follower; so that a type still has one pipeline on it
    add column follows text,                       -- the pipeline it runs after
    add column follows_type text,                  -- and the type of the events that one runs for
    add column needs_key boolean not null default false;

create table states (
    tenant     text not null,
    key        text not null,
    type       text not null,                      -- the name of the Struct
    value      json not null,
    event_id   uuid not null,                      -- of the event that set it
    written_at timestamptz not null default clock_timestamp(),
    primary key (tenant, key, type)
) with (fillfactor = 80);

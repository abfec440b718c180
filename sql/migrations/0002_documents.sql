create extension if not exists vector;

create table documents (
    tenant     text not null default 'default',
    collection text not null,
    id         text not null,
    text       text not null,
    embedding  vector not null,
    metadata   jsonb not null default '{}',
    written_at timestamptz not null default clock_timestamp(),
    primary key (tenant, collection, id)
);
-- Search is exact, within (tenant, collection, source): see sql/queries/vectors.sql.
create index documents_source on documents (tenant, collection, (metadata ->> 'source'));

-- Whose Redis it is: one id for this database, written beside the epoch in Redis. Two databases that ring with the same
-- keys of one Redis would take each other's events.
create table redis_owner (
    only_one boolean primary key default true check (only_one),
    owner    uuid not null default gen_random_uuid()
);
insert into redis_owner default values;

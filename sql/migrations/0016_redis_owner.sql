-- Whose Redis it is: one id for this database, written beside the epoch in Redis. Two databases that ring with the same
-- keys of one Redis would take each other's events.
create table redis_owner (
    only_one boolean primary key default true check (only_one),
    owner    uuid not null default gen_random_uuid()
);
insert into redis_owner default values;

-- `disconnected` is `deaf` by its right name; a worker of the release before this one still says `deaf`.
alter table workers add column if not exists reason text;
alter table workers drop constraint if exists workers_state_check;
alter table workers add constraint workers_state_check
    check (state in ('ready', 'deaf', 'disconnected', 'draining', 'stopped', 'dead'));

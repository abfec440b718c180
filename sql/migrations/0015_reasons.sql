-- Why a worker is not ready; and a state for one that can't reach what it needs.
alter table workers add column if not exists reason text;
alter table workers drop constraint if exists workers_state_check;
alter table workers add constraint workers_state_check
    check (state in ('ready', 'deaf', 'disconnected', 'draining', 'stopped', 'dead'));

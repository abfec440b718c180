-- Why a worker is not ready; and `disconnected`, a state for one that can't reach what it needs. A worker of the release
-- before this one still says `deaf`, which is read as the same.
alter table workers add column if not exists reason text;
alter table workers drop constraint if exists workers_state_check;
alter table workers add constraint workers_state_check
    check (state in ('ready', 'deaf', 'disconnected', 'draining', 'stopped', 'dead'));

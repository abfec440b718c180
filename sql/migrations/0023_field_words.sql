-- stop: it renames columns and stored words that the release before this one reads and writes.
-- One word for one thing, and the field's word where it has one: columns, their indexes, and the words stored in them.
alter table work rename column key to partition_key;
alter table work rename column ord to mailbox_seq;               -- null: none yet, a keyed event that is not due
alter table work rename column lost to consecutive_losses;       -- claims in a row that ended without an outcome
alter table work rename column strikes to crash_count;           -- those of them that nobody else can have caused
alter table work rename column put_offs to snoozes;              -- snoozes in a row; where the end is known, they don't count
alter table work rename column misses to doubtful_snoozes;       -- those in a row that the event itself may have caused
alter table work rename column rung_at to notified_at;           -- null: not notified since it became due
alter table work rename column rung_to to notified_stream;
alter table work rename column waits_for to blocked_by;          -- models, provider/model, with blanks between them
alter sequence place rename to mailbox_seq;                      -- the order in a mailbox
alter index work_unrung rename to work_unnotified;
alter index work_rung rename to work_notified;
alter index work_rung_mailbox rename to work_notified_mailbox;
alter index work_rung_front rename to work_notified_front;
alter index work_waiting rename to work_blocked;
alter index work_unplaced rename to work_without_seq;

alter table events rename column reaction to follow_up;          -- the pipeline that runs it, where that is not the one on its type
alter table states rename column key to partition_key;
alter table sessions rename column key to api_key;
alter index sessions_key rename to sessions_api_key;

alter table calls rename column asked to question_hash;
alter table calls rename column told_no to feed_n;               -- a streamed reply's number in the live feed of its claim
alter index calls_told rename to calls_streamed;

alter table pipelines rename column follows to after;            -- the pipeline after which it runs
alter table pipelines rename column follows_type to after_type;
alter table pipelines rename column needs_key to needs_partition_key;

alter table attempts drop constraint attempts_outcome_check;
update attempts set outcome = 'snoozed' where outcome = 'put_off';
alter table attempts add constraint attempts_outcome_check
    check (outcome in ('succeeded', 'failed', 'snoozed', 'handed_back', 'lost', 'dead', 'cancelled'));

alter table workers drop constraint workers_state_check;
update workers set state = 'disconnected' where state = 'deaf';
alter table workers add constraint workers_state_check
    check (state in ('ready', 'disconnected', 'draining', 'stopped', 'dead'));

-- A dead letter's reason `wiring`, and what a state was before the event that set it, so that a replay can begin there.
-- The old release goes on beside it: it gives no such reason, and a state that it writes is seen to have no `before`, since
-- its `event_id` and `set_by` don't go together.
alter table dead_letters drop constraint dead_letters_reason_check;
alter table dead_letters add constraint dead_letters_reason_check
    check (reason in ('attempts_exhausted', 'rejected', 'wiring', 'crash_loop', 'invalid', 'too_large', 'journal_mismatch', 'deadline'))
    not valid;                                     -- every row there fits: the old list is part of the new one

alter table states
    add column set_by text,                        -- event_id/run of the settle that wrote `value` and `before` together
    add column before json;                        -- the value before that run; null: there was none

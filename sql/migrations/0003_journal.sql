-- Stored results of steps: the first stored wins; written only under the claim that holds the event.
create table journal (
    event_id uuid not null,
    run      integer not null,
    step     text not null,
    at       timestamptz not null,                 -- when the step began
    entry    json not null,                        -- its result, and what its settle will write
    primary key (event_id, run, step)
);

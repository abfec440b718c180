-- What was said and how it ended. Rows here change once, at the end; what is still to do is a row in `work`.
create table events (
    event_id     uuid primary key,
    tenant       text not null default 'default',
    source       text not null,
    id           text not null,
    type         text not null,
    partitionkey text,
    attributes   json not null default '{}',      -- every other CloudEvents attribute and extension
    data         json not null,
    status       text not null default 'open' check (status in ('open', 'succeeded', 'dead', 'cancelled')),
    run          integer not null default 1,
    attempts     integer not null default 0,
    claim        bigint not null default 0,        -- the last fencing token given out; a replay goes on from it
    accepted_at  timestamptz not null default clock_timestamp(),
    finished_at  timestamptz,
    pipeline     text,
    worker       uuid,
    result       json,
    error        json,
    unique (tenant, source, id)
) with (fillfactor = 80);                          -- room for the one update to stay on its page

create sequence place cache 1;                     -- the order in a mailbox; cache 1, or two sessions would draw out of order

-- Open events only, narrow, so that a claim rewrites no payload.
create table work (
    event_id    uuid primary key,                  -- of events; no foreign key: the accepting statement writes both
    tenant      text not null,
    key         text,
    ord         bigint,                            -- null: no place yet, a keyed event that is not due
    status      text not null check (status in ('queued', 'scheduled', 'running', 'waiting')),
    run         integer not null default 1,
    attempts    integer not null default 0,
    lost        integer not null default 0,        -- claims in a row that ended without an outcome
    strikes     integer not null default 0,        -- those of them that nobody else can have caused
    put_offs    integer not null default 0,        -- put-offs in a row
    claim       bigint not null default 0,         -- the fencing token; grows by one per claim
    worker      uuid,
    first_at    timestamptz,                       -- when this run was first claimed
    claimed_at  timestamptz,
    deadline_at timestamptz,
    due_at      timestamptz not null,
    rung_at     timestamptz,                       -- null: not rung since it became due
    rung_to     text,
    cause       text                               -- why it waits
) with (fillfactor = 50);

create index work_mailbox on work (tenant, key, ord) where key is not null;
create index work_unrung on work (due_at) where rung_at is null and status in ('queued', 'scheduled');
create index work_rung on work (rung_at) where status in ('queued', 'scheduled');
create index work_held on work (worker) where status = 'running';
create index work_unplaced on work (due_at) where ord is null;

-- One row per claim: a fact, never refused.
create table attempts (
    event_id    uuid not null,
    claim       bigint not null,
    run         integer not null,
    attempt     integer not null,
    worker      uuid,
    started_at  timestamptz not null,
    finished_at timestamptz not null,
    outcome     text not null check (outcome in ('succeeded', 'failed', 'put_off', 'handed_back', 'lost', 'dead', 'cancelled')),
    detail      json,
    steps       json not null default '[]',
    primary key (event_id, claim)
);

-- The ledger: every LLM call, a fact, never refused.
create table calls (
    call_id      uuid primary key,
    event_id     uuid not null,
    run          integer not null,
    claim        bigint not null,
    step         text not null,
    at           timestamptz not null,
    prompt       text not null,
    version      integer not null,
    hash         text not null,
    request_hash text not null,
    provider     text not null,
    model        text not null,
    tokens_in    integer not null,
    tokens_out   integer not null,
    cost_usd     double precision not null,
    priced       boolean not null,                 -- false: the model's price is unknown, the cost counts as 0
    ms           double precision not null,
    outcome      text not null,
    reply        text,
    simulated    boolean not null
);
create index calls_of_event on calls (event_id);

create table dead_letters (
    dead_id  uuid primary key,
    dead_no  bigint generated always as identity unique,
    origin   text not null unique,                 -- event and run, or the stream entry: what makes a second letter impossible
    tenant   text not null default 'default',
    event_id uuid,
    type     text,
    reason   text not null check (reason in ('attempts_exhausted', 'rejected', 'crash_loop', 'invalid', 'too_large',
                                             'journal_mismatch', 'deadline')),
    error    json not null,
    attempts integer not null,
    at       timestamptz not null default clock_timestamp(),
    event    text not null,                        -- as it was said, even where that is no JSON
    relay_no bigint,                               -- its id in the dead stream, drawn by the one relay
    relayed  boolean not null default false
);
create index dead_letters_at on dead_letters (at);
create index dead_letters_event on dead_letters (event_id);
create index dead_letters_unrelayed on dead_letters (dead_no) where not relayed;
create sequence relay;

-- Runs that a replay has superseded.
create table runs (
    event_id    uuid not null,
    run         integer not null,
    status      text not null,
    attempts    integer not null,
    pipeline    text,
    worker      uuid,
    result      json,
    error       json,
    finished_at timestamptz,
    primary key (event_id, run)
);

-- What operators did.
create table operations (
    op_id    uuid primary key,
    at       timestamptz not null default clock_timestamp(),
    tenant   text not null default 'default',
    actor    text not null,
    action   text not null check (action in ('replay', 'cancel', 'discard')),
    event_id uuid,
    detail   json
);
create index operations_of_event on operations (event_id);

create table workers (
    worker      uuid primary key,
    host        text not null,
    pid         integer not null,
    version     text not null,
    started_at  timestamptz not null default clock_timestamp(),
    beat_at     timestamptz not null default clock_timestamp(),
    lease_until timestamptz not null,
    state       text not null check (state in ('ready', 'deaf', 'draining', 'stopped', 'dead')),
    slots       integer not null,
    in_flight   integer not null,
    pipelines   text[] not null
);

create table duties (                              -- what one process does at a time
    duty       text primary key,
    holder     uuid,
    held_until timestamptz not null default '-infinity'
);
insert into duties (duty) values ('ingest'), ('sweep'), ('dead_stream'), ('retention');

create table epoch (                               -- which memory of Redis was last seen, and when the one before was lost
    only_one boolean primary key default true check (only_one),
    epoch    text not null default '',
    lost_at  timestamptz not null default '-infinity'
);
insert into epoch default values;

create table pipelines (                           -- the graphs, written by workers at start
    name         text primary key,
    type         text not null unique,
    version      text not null,
    attempts_max integer not null,
    timeout_s    double precision not null,
    nodes        json not null,
    edges        json not null,
    written_at   timestamptz not null default clock_timestamp()
);

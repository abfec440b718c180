-- Calls are written when they begin: open, at the most they may cost.
alter table calls
    add column tenant  text not null default 'default',
    add column worker  uuid,
    add column day     date,                       -- the day whose budget it is held against; null: none
    add column asked   text not null default '',   -- hash of what the step asked; a call that asks again, with an error, has its own request_hash
    add column ordinal integer not null default 1, -- the how-manieth time the step asked that
    add column cause   text,                       -- why the outcome is unknown
    add column memory  boolean not null default false;  -- whether a retry of the step gets this reply back
create index calls_open on calls (worker) where outcome = 'open';

-- What has been drawn of a day's budget, and by whom: `drawn` is what a worker may spend without asking again, `used` is
-- what its calls cost, those under way at the most they may cost. What it has drawn and not used goes back.
create table budgets (
    tenant    text not null,
    day       date not null,
    drawn_usd double precision not null default 0,
    primary key (tenant, day)
);
create table allowances (
    worker    uuid not null,
    tenant    text not null,
    day       date not null,
    drawn_usd double precision not null,
    used_usd  double precision not null default 0,
    primary key (worker, tenant, day)
) with (fillfactor = 50);

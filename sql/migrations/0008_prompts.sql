-- Versions of prompts that were paid for: each keeps the text, by its hash, that it had then.
create table prompts (
    name       text not null,
    version    integer not null,
    hash       text not null,
    first_used timestamptz not null default clock_timestamp(),
    primary key (name, version)
);
insert into prompts (name, version, hash, first_used)
select prompt, version, (array_agg(hash order by at desc))[1], min(at)
from calls where not simulated and outcome <> 'open' group by prompt, version;

create index calls_at on calls (tenant, at);       -- for what is counted over a time

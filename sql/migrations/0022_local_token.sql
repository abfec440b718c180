-- The local token of `callboard up` has sessions, too: they have its hash in the place of a key, and end when it is renewed.
alter table sessions
    alter column key drop not null,
    add column token bytea,
    add constraint sessions_whose check ((key is null) <> (token is null));
-- Whether a worker's answers are simulated is its own to say.
alter table workers add column simulated boolean not null default false;

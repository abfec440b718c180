"""Triggers of the test's own in the database under test: what really happened to each row, whoever did it."""

from typing import Final

SCHEMA: Final = """
create table audit (
    n        bigint generated always as identity primary key,
    at       timestamptz not null default clock_timestamp(),
    what     text not null,
    event_id uuid not null,
    claim    bigint,
    worker   uuid,
    partition_key text,
    mailbox_seq   bigint,
    detail   text
);
create index on audit (event_id);

create function audit_work() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        insert into audit (what, event_id, claim, worker, partition_key, mailbox_seq, detail)
        values ('closed', old.event_id, old.claim, old.worker, old.partition_key, old.mailbox_seq, old.status);
        return old;
    end if;
    if tg_op = 'INSERT' or old.mailbox_seq is distinct from new.mailbox_seq then
        insert into audit (what, event_id, claim, partition_key, mailbox_seq)
        values ('placed', new.event_id, new.claim, new.partition_key, new.mailbox_seq);
    end if;
    if tg_op = 'UPDATE' and new.claim <> old.claim then
        insert into audit (what, event_id, claim, worker, partition_key, mailbox_seq)
        values ('claimed', new.event_id, new.claim, new.worker, new.partition_key, new.mailbox_seq);
    elsif tg_op = 'UPDATE' and old.status = 'running' and new.status <> 'running' then
        insert into audit (what, event_id, claim, worker, partition_key, mailbox_seq, detail)
        values ('freed', new.event_id, new.claim, old.worker, new.partition_key, new.mailbox_seq, new.cause);
    end if;
    return new;
end $$;
create trigger audit after insert or update or delete on work for each row execute function audit_work();

create function audit_events() returns trigger language plpgsql as $$
begin
    insert into audit (what, event_id, claim, worker, partition_key, detail)
    values (case new.status when 'open' then 'opened' else 'ended' end, new.event_id, new.claim, new.worker,
            new.partitionkey, new.status);
    return new;
end $$;
create trigger audit_insert after insert on events for each row execute function audit_events();
create trigger audit_update after update on events for each row
    when (old.status is distinct from new.status or new.status <> 'open') execute function audit_events();

create function audit_documents() returns trigger language plpgsql as $$
begin
    if new.collection = 'probe' then
        insert into audit (what, event_id, detail) values ('document', new.id::uuid, new.text);
    end if;
    return new;
end $$;
create trigger audit after insert or update on documents for each row execute function audit_documents();
"""

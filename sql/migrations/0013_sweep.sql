-- outside a transaction
-- Keyed events that were rung and may have to be again: the sweep steps from mailbox to mailbox in it, past all that runs
-- or backs off. While it is built, everybody goes on writing. One that was cut off is there and of no use: it is begun anew.
drop index concurrently if exists work_rung_mailbox;
create index concurrently work_rung_mailbox on work (tenant, key, ord)
    where key is not null and rung_at is not null and status in ('queued', 'scheduled');
-- The few that were rung to the front stream, which is read up to another moment than the one of all the others.
drop index concurrently if exists work_rung_front;
create index concurrently work_rung_front on work (rung_at) where rung_to = 'front' and status in ('queued', 'scheduled');

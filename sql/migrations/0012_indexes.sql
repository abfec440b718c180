-- outside a transaction
-- While they are built, everybody goes on writing. One that was cut off is there and of no use: it is begun anew.
drop index concurrently if exists documents_words;
create index concurrently documents_words on documents using gin (document_words(text));
-- The events of an actor, newest first.
drop index concurrently if exists events_of_key;
create index concurrently events_of_key on events (tenant, partitionkey, event_id) where partitionkey is not null;

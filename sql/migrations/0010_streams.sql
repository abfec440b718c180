-- The number a streamed reply has among what is told live of its claim; null: it was not streamed.
alter table calls add column told_no integer;
create index calls_told on calls (event_id, claim, told_no) where told_no is not null;

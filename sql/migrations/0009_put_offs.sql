-- How often an event was put off although others were answered, and whose recovery it waits for.
alter table work
    add column misses    integer not null default 0,  -- put-offs in a row of which only so many are free
    add column waits_for text;                        -- models, provider/model, with blanks between them
create index work_waiting on work (due_at) where waits_for is not null;

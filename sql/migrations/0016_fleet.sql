-- outside a transaction
-- Events are written while this runs, and the release before this one knows neither the column nor the index.
-- `ordinal`: which of the workers that are alive this one is, 0 first: a label that a restart does not make anew.
alter table worker_metrics add column if not exists ordinal integer;
-- The children of an event, newest first.
drop index concurrently if exists events_of_parent;
create index concurrently events_of_parent on events (parent, event_id) where parent is not null;
-- What all tenants have used of a day's budget.
drop index concurrently if exists budgets_of_day;
create index concurrently budgets_of_day on budgets (day) include (tenant, drawn_usd);

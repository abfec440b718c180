-- name: keyed
-- The types whose pipeline keeps state by key.
select type from pipelines where needs_key and type is not null;

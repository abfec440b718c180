-- name: keyed
-- The types whose pipeline keeps state by key.
select type from pipelines where needs_partition_key and type is not null;

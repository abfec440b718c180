-- name: owner
select owner from redis_owner;

-- name: letters_behind
-- The dead stream's ids go on behind $1, the last one that its Redis has seen.
-- Letters that were numbered and not written yet get new numbers.
with renumbered as (update dead_letters set relay_no = null where not relayed and relay_no is not null)
select setval('relay', greatest($1, (select last_value from relay)));

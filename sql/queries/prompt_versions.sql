-- name: used
select name, version, hash, first_used from prompts
where (name, version) in (select * from unnest($1::text[], $2::integer[]));

-- name: use
-- Answers with the text it was first used with, whoever that was.
insert into prompts (name, version, hash) values ($1, $2, $3)
on conflict (name, version) do update set hash = prompts.hash
returning name, version, hash, first_used;

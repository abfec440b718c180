-- name: dead_entry
insert into dead_letters (dead_id, origin, type, reason, error, attempts, event)
values ($1, $2, $3, $4,
        json_build_object('kind', $5::text, 'message', $6::text, 'step', null, 'at', clock_timestamp(), 'where', null), 0, $7)
on conflict (origin) do nothing;

-- name: register
insert into workers (worker, host, pid, version, lease_until, state, slots, in_flight, pipelines, simulated)
values ($1, $2, $3, $4, clock_timestamp() + $5::interval, 'ready', $6, 0, $7, $8);

-- name: beat
-- A lost lease is never revived: once a rescue has judged it, no row comes back, and the worker must register anew.
update workers
set beat_at = clock_timestamp(), lease_until = clock_timestamp() + $2::interval, state = $3, reason = $4, in_flight = $5
where worker = $1 and state not in ('dead', 'stopped')
returning (select count(*)::integer from workers where state not in ('dead', 'stopped')) as alive;

-- name: hold_deadlines
-- Of a worker that was stopped in a debugger: what it runs has no time limit, so nobody takes it from it.
update work set deadline_at = greatest(deadline_at, clock_timestamp() + interval '1 min') where worker = $1 and status = 'running';

-- name: leave
update workers set state = 'stopped', lease_until = clock_timestamp(), in_flight = 0 where worker = $1 and state <> 'dead';

-- name: not_held
-- Of the claims in hand, those that Postgres has given to somebody else, or to nobody. An event may be in hand twice, under a
-- claim that is lost and a new one: so the claim is returned, too. By key (see settle).
select h.event_id, h.claim from unnest($1::uuid[], $2::bigint[]) as h (event_id, claim)
left join lateral (
    select w.claim from work w
    where w.event_id = h.event_id and w.worker = $3 and w.status || '' = 'running' limit 1) as work_row on true
where work_row.claim is distinct from h.claim;

-- name: now
select clock_timestamp();

-- name: hold_duty
-- A duty is free when it was not renewed in time, and when the lease of the worker that holds it is gone.
update duties d set holder = $2, held_until = clock_timestamp() + $3::interval
where duty = $1
  and (holder = $2 or held_until < clock_timestamp()
       or exists (select 1 from workers w where w.worker = d.holder
                  and (w.state in ('dead', 'stopped') or w.lease_until < clock_timestamp())))
returning duty;

-- name: release_duty
update duties set held_until = '-infinity' where duty = $1 and holder = $2;

-- name: forget_pipelines
-- What was drawn of these types and under these names: a renamed pipeline leaves its type to the new name.
delete from pipelines where coalesce(type, after_type) = any ($1::text[]) or name = any ($2::text[]);

-- name: write_pipeline
insert into pipelines (name, type, version, attempts_max, timeout_s, nodes, edges, after, after_type, needs_partition_key)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (name) do update
    set type = excluded.type, version = excluded.version, attempts_max = excluded.attempts_max, timeout_s = excluded.timeout_s,
        nodes = excluded.nodes, edges = excluded.edges, after = excluded.after, after_type = excluded.after_type,
        needs_partition_key = excluded.needs_partition_key, written_at = clock_timestamp();

-- name: standing
-- `before`: the last claim of earlier runs.
select coalesce(w.status, e.status) as status, coalesce(w.run, e.run) as run, coalesce(w.claim, e.claim) as claim,
       coalesce((select max(a.claim) from attempts a where a.event_id = e.event_id and a.run < coalesce(w.run, e.run)), 0) as before
from events e left join work w using (event_id)
where e.event_id = $1 and e.tenant = $2;

-- name: standings
select e.event_id, coalesce(w.status, e.status) as status, coalesce(w.run, e.run) as run, coalesce(w.claim, e.claim) as claim
from unnest($1::uuid[]) as f (event_id) join events e using (event_id) left join work w using (event_id);

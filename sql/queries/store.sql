-- name: lock_mailboxes
-- Whoever draws a place holds its bucket until the commit, so that places are handed out in the order of commits.
select pg_advisory_xact_lock(7, bucket)
from (select distinct hashtext(tenant || key) & 255 as bucket from unnest($1::text[], $2::text[]) as keys (tenant, key) order by 1) as buckets;

-- name: accept
with given as (
    select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::json[], $8::json[], $9::timestamptz[],
                         $10::uuid[], $11::text[], $12::text[], $13::text[])
        with ordinality as g (event_id, tenant, source, id, type, partitionkey, attributes, data, due_at, parent, reaction,
                              accepted_by, quota_key, n)
), stored as (
    insert into events (event_id, tenant, source, id, type, partitionkey, attributes, data, parent, reaction, accepted_by)
    select event_id, tenant, source, id, type, partitionkey, attributes, data, parent, reaction, accepted_by from given order by n
    on conflict do nothing
    returning event_id
), queued as (
    insert into work (event_id, tenant, key, ord, status, due_at, rung_at, rung_to, quota_key)
    select event_id, tenant, partitionkey,
           case when partitionkey is null or due_at is null or due_at <= now() then nextval('place') end,
           case when due_at > now() then 'scheduled' else 'queued' end,
           coalesce(due_at, now()),
           case when due_at > now() then null else clock_timestamp() end,
           case when due_at > now() then null else 'work' end,
           quota_key
    from given join stored using (event_id)
    order by n
    returning event_id, status = 'queued' as due
)
select event_id, due from queued;

-- name: existing
select e.event_id, e.tenant, e.source, e.id, e.type, e.partitionkey, e.attributes, e.data, e.parent, coalesce(w.status, e.status) as status
from unnest($1::text[], $2::text[], $3::text[]) as asked (tenant, source, id)
join events e using (tenant, source, id)
left join work w using (event_id);

-- name: lock_mailboxes
-- Whoever draws a mailbox_seq holds its bucket until the commit, so that they are handed out in the order of commits.
select pg_advisory_xact_lock(7, bucket)
from (select distinct hashtext(tenant || partition_key) & 255 as bucket
      from unnest($1::text[], $2::text[]) as mailboxes (tenant, partition_key) order by 1) as buckets;

-- name: accept
with batch as (
    select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::json[], $8::json[], $9::timestamptz[],
                         $10::uuid[], $11::text[], $12::text[], $13::text[])
        with ordinality as g (event_id, tenant, source, id, type, partitionkey, attributes, data, due_at, parent, follow_up,
                              accepted_by, quota_key, n)
), stored as (
    insert into events (event_id, tenant, source, id, type, partitionkey, attributes, data, parent, follow_up, accepted_by)
    select event_id, tenant, source, id, type, partitionkey, attributes, data, parent, follow_up, accepted_by from batch order by n
    on conflict do nothing
    returning event_id
), queued as (
    insert into work (event_id, tenant, partition_key, mailbox_seq, status, due_at, notified_at, notified_stream, quota_key)
    select event_id, tenant, partitionkey,
           case when partitionkey is null or due_at is null or due_at <= now() then nextval('mailbox_seq') end,
           case when due_at > now() then 'scheduled' else 'queued' end,
           coalesce(due_at, now()),
           case when due_at > now() then null else clock_timestamp() end,
           case when due_at > now() then null else 'work' end,
           quota_key
    from batch join stored using (event_id)
    order by n
    returning event_id, status = 'queued' as due
)
select event_id, due from queued;

-- name: existing
select e.event_id, e.tenant, e.source, e.id, e.type, e.partitionkey, e.attributes, e.data, e.parent, coalesce(w.status, e.status) as status
from unnest($1::text[], $2::text[], $3::text[]) as wanted (tenant, source, id)
join events e using (tenant, source, id)
left join work w using (event_id);

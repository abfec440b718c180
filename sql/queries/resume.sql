-- name: bring_forward
-- Up to $2 of the events that wait for $1, those first whose time would come first, spread over a second; where $3 is given,
-- only of those that were not tried since.
with soon as (
    select event_id from work
    where blocked_by is not null and $1::text = any (string_to_array(blocked_by, ' '))
      and status || '' = 'scheduled' and due_at > now() and ($3::timestamptz is null or claimed_at < $3)
    order by due_at limit $2 for update skip locked
), forwarded as (
    update work w set due_at = clock_timestamp() + random() * interval '1 s', blocked_by = null
    from soon where w.event_id = soon.event_id
)
select count(*)::integer from soon;

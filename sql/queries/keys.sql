-- name: look_up
-- For each pair of a prefix and a hash: the key of that prefix, or the key of the session of that prefix. The caller compares
-- the hashes. Where they are equal the key or the session counts as used, which is written once a minute at most. $3: how
-- long a session may lie idle; $4: the hash of the local token, which has sessions too.
with pairs as (
    select * from unnest($1::text[], $2::bytea[]) with ordinality as a (prefix, text_hash, n)
), candidates as (
    select a.n, a.text_hash, k.hash, k.prefix as api_key, k.tenant, k.scopes, k.rate, k.max_open,
           k.revoked_at is null and coalesce(k.expires_at > clock_timestamp(), true) as live
    from pairs a join keys k using (prefix)
    union all
    select a.n, a.text_hash, s.hash, coalesce(k.prefix, 'local'), coalesce(k.tenant, 'default'), coalesce(k.scopes, '{admin}'),
           k.rate, k.max_open,
           k.revoked_at is null and coalesce(k.expires_at > clock_timestamp(), true) and s.expires_at > clock_timestamp()
           and s.used_at > clock_timestamp() - $3::interval
    from pairs a join sessions s using (prefix) left join keys k on k.prefix = s.api_key
    where k.prefix is not null or s.token = $4
), seen as (
    update sessions set used_at = clock_timestamp()
    where prefix = any (array(
        select s.prefix from sessions s join pairs a using (prefix)
        where s.hash = a.text_hash and s.expires_at > clock_timestamp() and s.used_at > clock_timestamp() - $3::interval
          and s.used_at < clock_timestamp() - interval '1 minute'
        order by s.prefix for update of s skip locked))
), used as (
    update keys set last_used_at = clock_timestamp()
    where prefix = any (array(
        select prefix from keys
        where prefix in (select api_key from candidates where live and text_hash = hash)
          and coalesce(last_used_at < clock_timestamp() - interval '1 minute', true)
        order by prefix for update skip locked))
)
select f.hash, f.api_key, f.tenant, f.scopes, f.rate, f.max_open, f.live
from pairs a left join candidates f using (n) order by a.n;

-- name: any_made
select exists (select 1 from keys);

-- name: create
with created as (
    insert into keys (prefix, tenant, name, hash, scopes, expires_at, rate, max_open)
    values ($1, $2, $3, $4, $5, clock_timestamp() + $6::interval, $8, $9)
    returning prefix, tenant, name, scopes, expires_at, rate, max_open
), operation as (
    insert into operations (op_id, tenant, actor, action, detail)
    select gen_random_uuid(), tenant, $7, 'create_key',
           json_build_object('prefix', prefix, 'name', name, 'scopes', scopes, 'expires_at', expires_at, 'rate', rate,
                             'max_open', max_open)
    from created
)
select expires_at from created;

-- name: revoke
with revoked as (
    update keys set revoked_at = clock_timestamp() where prefix = $1 and revoked_at is null returning prefix, tenant, name
), operation as (
    insert into operations (op_id, tenant, actor, action, detail)
    select gen_random_uuid(), tenant, $2, 'revoke_key', json_build_object('prefix', prefix, 'name', name) from revoked
)
select tenant, name from revoked;

-- name: limit
-- Null leaves a limit as it is; '' and 0 take it away.
with limited as (
    update keys set rate = nullif(coalesce($2, rate), ''), max_open = nullif(coalesce($3, max_open), 0)
    where prefix = $1 and revoked_at is null
    returning prefix, tenant, name, rate, max_open
), operation as (
    insert into operations (op_id, tenant, actor, action, detail)
    select gen_random_uuid(), tenant, $4, 'limit_key',
           json_build_object('prefix', prefix, 'name', name, 'rate', rate, 'max_open', max_open)
    from limited
)
select rate, max_open from limited;

-- name: open_events
-- How many events of a key are open, counted up to $2.
select count(*)::integer from (select 1 from work where quota_key = $1 limit $2::integer) as counted;

-- name: end_sessions
with ended as (
    delete from sessions where api_key = $1 returning 1
), counted as (
    select k.prefix, k.tenant, (select count(*)::integer from ended) as count from keys k where k.prefix = $1
), operation as (
    insert into operations (op_id, tenant, actor, action, detail)
    select gen_random_uuid(), tenant, $2, 'end_sessions', json_build_object('prefix', prefix, 'count', count) from counted
)
select count from counted;

-- name: keys
select prefix, name, tenant, scopes, rate, max_open, created_at, expires_at, last_used_at, revoked_at,
       case when revoked_at is not null then 'revoked' when expires_at <= clock_timestamp() then 'expired' else 'valid' end as state
from keys order by created_at;

-- name: sign_in
with old as (
    delete from sessions where expires_at < clock_timestamp() or used_at < clock_timestamp() - $6::interval
), operation as (
    insert into operations (op_id, tenant, actor, action)
    select gen_random_uuid(), coalesce(k.tenant, 'default'), coalesce(k.prefix, 'local'), 'sign_in'
    from (select $3::text as prefix) as session_key left join keys k using (prefix)
)
insert into sessions (prefix, hash, api_key, token, expires_at) values ($1, $2, $3, $4, clock_timestamp() + $5::interval);

-- name: sign_out
with gone as (
    delete from sessions where prefix = $1 and hash = $2 returning api_key
), operation as (
    insert into operations (op_id, tenant, actor, action)
    select gen_random_uuid(), coalesce(k.tenant, 'default'), coalesce(k.prefix, 'local'), 'sign_out'
    from gone left join keys k on k.prefix = gone.api_key
)
select coalesce(api_key, 'local') from gone;

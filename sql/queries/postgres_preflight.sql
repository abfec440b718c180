-- name: server
select current_setting('server_encoding') as encoding,
       pg_is_in_recovery() or current_setting('transaction_read_only') = 'on' as read_only,
       (select has_schema_privilege(x.extnamespace, 'usage') from pg_extension x where x.extname = 'vector') as vectors,
       pg_backend_pid() as pid;

-- name: room
-- How many connections more this role may open, by each bound there is; those of others count, whatever program has them.
-- Bounds are the login's, which `alter role NAME set role` does not change.
with others as (
    select usename, datname from pg_stat_activity
    where pid <> pg_backend_pid() and datid is not null and leader_pid is null
      and coalesce(backend_type, 'client backend') = 'client backend'
)
select current_setting('max_connections')::integer as most,
       case when r.rolsuper then 0
            else current_setting('superuser_reserved_connections')::integer
                 + coalesce(current_setting('reserved_connections', true)::integer, 0) end as reserved,
       (select count(*) from others)::integer as used,
       case when not r.rolsuper then nullif(r.rolconnlimit, -1) end as role_most,
       (select count(*) from others where usename = session_user)::integer as role_used,
       case when not r.rolsuper then nullif(d.datconnlimit, -1) end as database_most,
       (select count(*) from others where datname = current_database())::integer as database_used
from pg_roles r cross join pg_database d
where r.rolname = session_user and d.datname = current_database();

-- name: pid
select pg_backend_pid();

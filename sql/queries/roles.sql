-- name: foreign_tables
-- Our tables that belong to another role than the session's, and whether the session's role is a member of that one.
select c.relname as name, pg_get_userbyid(c.relowner) as owner, pg_has_role(current_user, c.relowner, 'usage') as is_member
from pg_class c
where c.oid in (select to_regclass(name) from unnest($1::text[]) as t (name)) and c.relowner <> current_user::regrole
order by 1;

-- name: change_owner
-- A statement for each relation and function of ours that belongs to another role, which makes it the session's.
select format('alter %s %s owner to %I',
              case when c.relkind = 'S' then 'sequence' else 'table' end, c.oid::regclass, current_user) as statement
from pg_class c
where c.oid in (select to_regclass(name) from unnest($1::text[] || $2::text[]) as t (name))
  and c.relowner <> current_user::regrole
union all
select format('alter function %s owner to %I', p.oid::regprocedure, current_user)
from pg_proc p
where p.oid in (select to_regprocedure(name) from unnest($3::text[]) as f (name)) and p.proowner <> current_user::regrole;

-- name: grant_rights
-- A statement for each right that the role $1 lacks of those that programs need: on the schema of ours and that of pgvector,
-- on tables ($2; `migrations` is only read), sequences ($3) and functions ($4).
select statement from (
    select format('grant usage on schema %I to %I', n.nspname, $1::text) as statement
    from pg_namespace n
    where n.oid in ((select relnamespace from pg_class where oid = to_regclass('migrations')),
                    (select extnamespace from pg_extension where extname = 'vector'))
      and not has_schema_privilege($1::text::name, n.oid, 'usage')
    union all
    select format('grant %s on table %s to %I', string_agg(word, ', '), t.oid, $1::text)
    from (select to_regclass(name) as oid, name from unnest($2::text[]) as t (name)) t
    cross join unnest(array['select', 'insert', 'update', 'delete']) as r (word)
    where (t.name <> 'migrations' or word = 'select') and not has_table_privilege($1::text::name, t.oid, word)
    group by t.oid
    union all
    select format('grant usage, select, update on sequence %s to %I', s.oid, $1::text)
    from (select to_regclass(name) as oid from unnest($3::text[]) as t (name)) s
    where not (has_sequence_privilege($1::text::name, s.oid, 'usage') and has_sequence_privilege($1::text::name, s.oid, 'select')
               and has_sequence_privilege($1::text::name, s.oid, 'update'))
    union all
    select format('grant execute on function %s to %I', f.oid, $1::text)
    from (select to_regprocedure(name) as oid from unnest($4::text[]) as t (name)) f
    where not has_function_privilege($1::text::name, f.oid, 'execute')
) g;

-- name: revoke_membership
-- A statement that ends the membership of the role $1 in the session's role, where there is one.
select format('revoke %I from %I', current_user, $1::text) as statement
from pg_auth_members
where roleid = current_user::regrole and member = $1::text::regrole;

-- name: role_exists
select exists (select 1 from pg_roles where rolname = $1::text);

-- name: create_role
-- A statement that creates the role $1; $2: what the server stores of its password, or empty for a role without one.
select case when $2::text = '' then format('create role %I login', $1::text)
            else format('create role %I login password %L', $1::text, $2::text) end as statement;

-- name: session
-- The role that a session has (`alter role NAME set role` may have changed it), its database, and the table that it finds.
select current_user::text as role,
       (select format('%s/%s', oid, datname) from pg_database where datname = current_database()) as database,
       to_regclass('migrations')::oid as migrations;

-- name: rights
-- Whether the session's role may do more than programs need, or less.
select current_user::text as role,
       (select rolsuper from pg_roles where rolname = current_user) as superuser,
       to_regclass('events') is not null as migrated,
       coalesce((select pg_has_role(relowner, 'usage') from pg_class where oid = to_regclass('events')), false) as owner,
       coalesce(has_table_privilege(to_regclass('events'), 'insert'), false) as writes;

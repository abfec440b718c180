-- name: begin
-- What every session of ours begins with. By a statement, not at the connection's start: PgBouncer refuses to pass that on.
-- The schema of pgvector goes behind those of the role: Supabase and others have it in one of its own.
select set_config('statement_timeout', '10s', false), set_config('lock_timeout', '5s', false),
       set_config('idle_in_transaction_session_timeout', '10s', false), set_config('jit', 'off', false),
       -- A plan kept from when a table was empty would scan it from end to end when a backlog comes.
       set_config('plan_cache_mode', 'force_custom_plan', false),
       (select set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), quote_ident(n.nspname)), false)
        from pg_extension x join pg_namespace n on n.oid = x.extnamespace
        where x.extname = 'vector' and n.nspname <> all (current_schemas(true)));

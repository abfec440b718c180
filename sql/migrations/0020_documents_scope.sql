-- Documents have a scope of their own. A key made before keeps what it could: `ingest` put documents, `operate` deleted them.
-- The release before goes on beside it: it asks for no such scope. A key that it still makes has none.
alter table keys
    drop constraint keys_scopes_check,
    add constraint keys_scopes_check
        check (scopes <@ array['ingest', 'documents', 'read', 'operate', 'admin'] and scopes <> '{}');
update keys set scopes = scopes || array['documents'] where scopes && array['ingest', 'operate'];

-- What workers report of themselves for GET /metrics. Unlogged: it costs no write-ahead log, and is there again seconds
-- after a crash. Not in the lease row: a report never holds a lock that a heartbeat waits for.
create unlogged table worker_metrics (
    worker   uuid primary key references workers on delete cascade,
    at       timestamptz not null,
    lag_s    double precision not null,            -- the event loop's worst since the last report
    breakers json not null,
    series   json not null
);

-- name: report
update worker_metrics set at = now(), lag_s = $2, breakers = $3, series = $4 where worker = $1 returning worker;

-- name: ordinals_alone
-- One worker at a time takes an ordinal, until its transaction ends.
select pg_advisory_xact_lock(7262017);

-- name: first_report
-- Under the smallest ordinal that no worker alive has.
insert into worker_metrics (worker, at, lag_s, breakers, series, ordinal)
select $1, now(), $2, $3, $4, min(n) from generate_series(0, 9999) as n
where n not in (select m.ordinal from worker_metrics m join workers w using (worker)
                where m.ordinal is not null and w.state not in ('dead', 'stopped') and w.worker <> $1)
on conflict (worker) do update
    set at = excluded.at, lag_s = excluded.lag_s, breakers = excluded.breakers, series = excluded.series;

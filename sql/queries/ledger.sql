-- name: open_calls
-- Before a call is made. The sums go to the worker's allowance; where that was taken back, its worker counts as dead and
-- the call must not be made. $20: the call has ended, and its row is gone. Where a crash of Postgres lost it, it is written
-- again; where its event was forgotten, it is not.
with batch as (
    select g.*, known.call_id is not null as there
    from unnest($1::uuid[], $2::uuid[], $3::integer[], $4::bigint[], $5::text[], $6::timestamptz[], $7::text[], $8::integer[],
                $9::text[], $10::text[], $11::text[], $12::integer[], $13::text[], $14::text[], $15::double precision[],
                $16::boolean[], $17::uuid[], $18::text[], $19::date[])
        as g (call_id, event_id, run, claim, step, at, prompt, version, hash, request_hash, question_hash, ordinal, provider, model,
              cost_usd, priced, worker, tenant, day)
    left join lateral (select calls.call_id from calls where calls.call_id = g.call_id limit 1) as known on true
), booked as (
    update allowances a set used_usd = a.used_usd + s.usd
    from (select worker, tenant, day, sum(cost_usd) as usd from batch where day is not null and not there group by 1, 2, 3) as s
    where a.worker = s.worker and a.tenant = s.tenant and a.day = s.day
      and (a.used_usd + s.usd <= a.drawn_usd + 0.000001 or $20::boolean)  -- what sums of floats may be off
    returning a.worker, a.tenant, a.day
), held as (
    select g.*, g.day is null or exists (select 1 from booked b where (b.worker, b.tenant, b.day) = (g.worker, g.tenant, g.day)) as held
    from batch g
), opened as (
    insert into calls (call_id, event_id, run, claim, step, at, prompt, version, hash, request_hash, question_hash, ordinal, provider,
                       model, tokens_in, tokens_out, cost_usd, priced, ms, outcome, simulated, worker, tenant, day)
    select call_id, event_id, run, claim, step, at, prompt, version, hash, request_hash, question_hash, ordinal, provider,
           model, 0, 0, case when held then cost_usd else 0 end, priced, 0, 'open', false, worker, tenant, day
    from held where not there and (held or $20::boolean)
      and (not $20::boolean or (select true from events where events.event_id = held.event_id))
    on conflict (call_id) do nothing
)
select call_id from held where there or held;

-- name: close_calls
-- A fact, whoever holds the event by now; a memory only where nobody has claimed it since. What a call cost less than was
-- reserved goes back to its allowance, or to the day where that is gone.
with batch as (
    select * from unnest($1::uuid[], $2::integer[], $3::integer[], $4::double precision[], $5::double precision[], $6::text[],
                         $7::text[], $8::text[], $9::boolean[], $10::integer[])
        as g (call_id, tokens_in, tokens_out, cost_usd, ms, outcome, cause, reply, simulated, feed_n)
), mine as (
    select g.*, c.event_id, c.claim, c.worker, c.tenant, c.day, g.cost_usd - c.cost_usd as more_usd
    from (select * from batch order by call_id) as g
    cross join lateral (select * from calls where calls.call_id = g.call_id for update) as c
), closed as (
    update calls c
    set tokens_in = m.tokens_in, tokens_out = m.tokens_out, cost_usd = m.cost_usd, ms = m.ms,
        outcome = m.outcome, cause = m.cause, reply = m.reply, simulated = m.simulated, feed_n = m.feed_n,
        memory = m.outcome = 'ok'
             and m.claim = coalesce((select w.claim from work w where w.event_id = m.event_id),
                                    (select e.claim from events e where e.event_id = m.event_id), -1)
    from mine m where c.call_id = m.call_id and c.call_id = any (array(select call_id from mine))
    returning c.call_id, c.memory
), more as (
    select worker, tenant, day, sum(more_usd) as usd from mine where day is not null group by 1, 2, 3
), booked as (
    update allowances a set used_usd = a.used_usd + m.usd from more m
    where a.worker = m.worker and a.tenant = m.tenant and a.day = m.day
    returning a.worker, a.tenant, a.day
), pooled as (
    update budgets b set drawn_usd = b.drawn_usd + m.usd
    from (select tenant, day, sum(usd) as usd from more
          where not exists (select 1 from booked k where (k.worker, k.tenant, k.day) = (more.worker, more.tenant, more.day))
          group by 1, 2) as m
    where b.tenant = m.tenant and b.day = m.day
)
select call_id, memory from closed;

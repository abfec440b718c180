-- name: begin_day
insert into budgets (tenant, day) values ($1, $2) on conflict do nothing;

-- name: draw
-- An allowance for a worker ($1): at least $5, at most a sixteenth of what is left of the day's limit ($4).
with pool as (
    select drawn_usd from budgets where tenant = $2 and day = $3 for update
), amount as (
    select greatest($5::double precision, ($4::double precision - drawn_usd) / 16) as usd from pool where drawn_usd + $5 <= $4
      and exists (select 1 from workers where worker = $1 and state not in ('dead', 'stopped'))
), taken as (
    update budgets b set drawn_usd = b.drawn_usd + amount.usd from amount where b.tenant = $2 and b.day = $3
), extended as (
    insert into allowances as a (worker, tenant, day, drawn_usd) select $1::uuid, $2::text, $3::date, usd from amount
    on conflict (worker, tenant, day) do update set drawn_usd = a.drawn_usd + excluded.drawn_usd
)
select usd from amount;

-- name: put_back
with allowance as (
    update allowances set drawn_usd = drawn_usd - $4 where worker = $1 and tenant = $2 and day = $3 returning tenant, day
)
update budgets b set drawn_usd = b.drawn_usd - $4 from allowance k where b.tenant = k.tenant and b.day = k.day;

-- name: settled
-- What is really spent of a day: without what workers hold ready and what calls under way may cost.
select b.drawn_usd
       - coalesce((select sum(a.drawn_usd - a.used_usd) from allowances a where a.tenant = $1 and a.day = $2), 0)
       - coalesce((select sum(c.cost_usd) from calls c where c.outcome = 'open' and c.tenant = $1 and c.day = $2), 0) as usd
from budgets b where b.tenant = $1 and b.day = $2;

-- name: give_back
with gone as (
    delete from allowances where worker = any ($1::uuid[]) returning tenant, day, drawn_usd - used_usd as usd
)
update budgets b set drawn_usd = b.drawn_usd - g.usd
from (select tenant, day, sum(usd) as usd from gone group by 1, 2) as g
where b.tenant = g.tenant and b.day = g.day;

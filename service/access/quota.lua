-- How many events a key may send now, over all APIs together, by the Generic Cell Rate Algorithm: its only state is the time
-- at which all events will have drained. Each call also marks its API as alive.
-- KEYS: a sorted set (API -> when it no longer counts as alive); the key's bucket, a text, where the API wants events.
-- ARGV: the API, milliseconds for which it counts as alive; events in a period, microseconds of a period, events wanted,
-- events to be counted before that (below 0: those that the API was granted and has not used).
-- Gives: how many APIs are alive; how many events are granted, and in how many microseconds all will have drained.
-- A key that is there and is neither a sorted set nor a text was made by mistake: it is deleted and made anew.
for n, kind in ipairs({'zset', 'string'}) do
    local actual = KEYS[n] and redis.call('TYPE', KEYS[n]).ok or 'none'
    if actual ~= kind and actual ~= 'none' then redis.call('DEL', KEYS[n]) end
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local lasts = tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], math.floor(now / 1000) + lasts, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', math.floor(now / 1000))
redis.call('PEXPIRE', KEYS[1], lasts)
local alive = redis.call('ZCARD', KEYS[1])
if not KEYS[2] then return {alive, 0, 0} end

local period, wanted = tonumber(ARGV[4]), tonumber(ARGV[5])
local apart = period / tonumber(ARGV[3])
-- Never further than a period away: the key had another rate then, or the clock was set back.
local drained = tonumber(redis.call('GET', KEYS[2])) or now
drained = math.min(math.max(drained, now) + tonumber(ARGV[6]) * apart, now + period)
drained = math.max(drained, now)
local granted = math.max(0, math.min(wanted, math.floor((now + period - drained) / apart + 0.000001)))
drained = math.ceil(drained + granted * apart - 0.001)
if drained > now then
    redis.call('SET', KEYS[2], string.format('%.0f', drained), 'PX', math.ceil((drained - now) / 1000))
else
    redis.call('DEL', KEYS[2])
end
return {alive, granted, drained - now}

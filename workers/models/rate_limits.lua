-- One decision for all workers about one model: what may be sent now, and when the others may ask again.
-- KEYS: a hash (the levels of the two buckets), a sorted set (permit -> expiry).
-- ARGV: requests a minute, tokens a minute, calls at a time (0: no limit), milliseconds that a permit lasts, milliseconds of
-- pause that the provider has asked for; then how many of each, and these: what comes back (permit, requests, tokens,
-- milliseconds it took, tokens it used; -1: nobody knows), permits that are renewed, what is asked for (permit, tokens).
-- Gives two numbers for each that asks: milliseconds to wait (0: go), and why (1 requests, 2 tokens, 3 calls, 4 pause); and
-- a last one: 1 where so much is left over that those who were told a time can't be there any more.
-- A key that is there and is neither a hash nor a sorted set was made by mistake: it is deleted and made anew.
for n, kind in ipairs({'hash', 'zset'}) do
    local found = redis.call('TYPE', KEYS[n]).ok
    if found ~= kind and found ~= 'none' then redis.call('DEL', KEYS[n]) end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local per_min, tokens_per_min, many = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local lasts, pause = tonumber(ARGV[4]), tonumber(ARGV[5])
local place = 6
local function nxt()
    place = place + 1
    return ARGV[place - 1]
end

-- A bucket holds what comes in ten seconds. Begun anew it holds what comes in one: a Redis that forgot gives no more away.
local held = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at', 'paused', 'turn', 'took', 'used')
local full, full_tokens = math.max(1, per_min / 6), math.max(1, tokens_per_min / 6)
local gone = math.max(0, now - (tonumber(held[3]) or now))
local requests = math.min(full, (tonumber(held[1]) or math.max(1, full / 10)) + gone * per_min / 60000)
local tokens = math.min(full_tokens, (tonumber(held[2]) or math.max(1, full_tokens / 10)) + gone * tokens_per_min / 60000)
-- What a call takes is learned. It begins with little: told too short a time one asks again, told too long a time nobody does.
local paused, turn, took = tonumber(held[4]) or 0, tonumber(held[5]) or 0, tonumber(held[6]) or 100
local used = tonumber(held[7]) or 1
if pause > 0 then
    paused = math.max(paused, now + pause)
    requests, tokens = math.min(requests, 0), math.min(tokens, 0)
end

for _ = 1, tonumber(nxt()) do
    redis.call('ZREM', KEYS[2], nxt())
    requests = math.min(full, requests + nxt())
    tokens = math.min(full_tokens, tokens + nxt())
    local ms = tonumber(nxt())
    if ms >= 0 then took = took + 0.1 * (ms - took) end
    local of_one = tonumber(nxt())
    if of_one >= 0 then used = used + 0.1 * (of_one - used) end
end
for _ = 1, tonumber(nxt()) do
    redis.call('ZADD', KEYS[2], now + lasts, nxt())
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local running = redis.call('ZCARD', KEYS[2])

local function free()
    return paused <= now and (per_min == 0 or requests >= math.max(1, full / 5))
           and (tokens_per_min == 0 or tokens >= math.min(full_tokens, math.max(used, full_tokens / 5)))
           and (many == 0 or running <= many / 2)
end
if free() then turn = 0 end

local told = {}
for _ = 1, tonumber(nxt()) do
    local permit, wanted = nxt(), tonumber(nxt())
    local needed = math.min(wanted, full_tokens)
    local wait, why = 0, 0
    if per_min > 0 and requests < 1 then
        wait, why = (1 - requests) * 60000 / per_min, 1
    end
    if tokens_per_min > 0 and tokens < needed then
        local more = (needed - tokens) * 60000 / tokens_per_min
        if more > wait then wait, why = more, 2 end
    end
    if many > 0 and running >= many and took / many > wait then
        wait, why = math.max(took / many, 1), 3
    elseif many > 0 and running >= many and why == 0 then
        wait, why = 1, 3
    end
    if paused > now and paused - now > wait then
        wait, why = paused - now, 4
    end
    if why == 0 then
        requests, tokens, running = requests - 1, tokens - wanted, running + 1
        if many > 0 then redis.call('ZADD', KEYS[2], now + lasts, permit) end
    else
        -- Those who wait are told different times, a little closer than what comes allows, so that none of it is lost.
        local apart = 0
        if per_min > 0 then apart = 60000 / per_min end
        if tokens_per_min > 0 then apart = math.max(apart, used * 60000 / tokens_per_min) end
        if many > 0 then apart = math.max(apart, took / many) end
        turn = math.max(turn + 0.8 * apart, now + wait)
        wait = math.max(1, math.ceil(turn - now))
    end
    told[#told + 1] = wait
    told[#told + 1] = why
end
redis.call('HSET', KEYS[1], 'requests', tostring(requests), 'tokens', tostring(tokens), 'at', now,
           'paused', paused, 'turn', tostring(turn), 'took', tostring(took), 'used', tostring(used))
told[#told + 1] = free() and 1 or 0
return told

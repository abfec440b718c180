-- One decision for all workers about one model: what may be sent now, and when the others may ask again.
-- KEYS: a hash (the levels of the two buckets), a sorted set (permit -> expiry).
-- ARGV: requests a minute, tokens a minute, calls at a time (0: no limit), milliseconds that a permit lasts, milliseconds of
-- pause that the provider has asked for; then how many of each, and these: what comes back (permit, requests, tokens,
-- milliseconds it took, tokens it used; -1: nobody knows), permits that are renewed, what is asked for (permit, tokens).
-- Returns two numbers for each that asks: milliseconds to wait (0: go), and the limit that makes it wait (WaitReason in
-- share.py); and a last one: 1 where so much is left over that those who were given a time can't be there any more.
-- A key that is there and is neither a hash nor a sorted set was made by mistake: it is deleted and made anew.
for n, kind in ipairs({'hash', 'zset'}) do
    local actual = redis.call('TYPE', KEYS[n]).ok
    if actual ~= kind and actual ~= 'none' then redis.call('DEL', KEYS[n]) end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local per_min, tokens_per_min, many = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local lasts, pause = tonumber(ARGV[4]), tonumber(ARGV[5])
local NONE, REQUESTS, TOKENS, CONCURRENCY, PAUSE = 0, 1, 2, 3, 4
local index = 6
local function next_argument()
    index = index + 1
    return ARGV[index - 1]
end

-- A bucket holds what comes in ten seconds. Begun anew it holds what comes in one: a Redis that forgot gives no more away.
local held = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at', 'paused_until', 'last_turn_at', 'mean_ms', 'mean_tokens')
local full, full_tokens = math.max(1, per_min / 6), math.max(1, tokens_per_min / 6)
local gone = math.max(0, now - (tonumber(held[3]) or now))
local requests = math.min(full, (tonumber(held[1]) or math.max(1, full / 10)) + gone * per_min / 60000)
local tokens = math.min(full_tokens, (tonumber(held[2]) or math.max(1, full_tokens / 10)) + gone * tokens_per_min / 60000)
-- What a call takes is learned. It begins with little: given too short a time one asks again, given too long a time nobody does.
local paused_until, last_turn_at, mean_ms = tonumber(held[4]) or 0, tonumber(held[5]) or 0, tonumber(held[6]) or 100
local mean_tokens = tonumber(held[7]) or 1
if pause > 0 then
    paused_until = math.max(paused_until, now + pause)
    requests, tokens = math.min(requests, 0), math.min(tokens, 0)
end

for _ = 1, tonumber(next_argument()) do
    redis.call('ZREM', KEYS[2], next_argument())
    requests = math.min(full, requests + next_argument())
    tokens = math.min(full_tokens, tokens + next_argument())
    local ms = tonumber(next_argument())
    if ms >= 0 then mean_ms = mean_ms + 0.1 * (ms - mean_ms) end
    local of_one = tonumber(next_argument())
    if of_one >= 0 then mean_tokens = mean_tokens + 0.1 * (of_one - mean_tokens) end
end
for _ = 1, tonumber(next_argument()) do
    redis.call('ZADD', KEYS[2], now + lasts, next_argument())
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local running = redis.call('ZCARD', KEYS[2])

local function free()
    return paused_until <= now and (per_min == 0 or requests >= math.max(1, full / 5))
           and (tokens_per_min == 0 or tokens >= math.min(full_tokens, math.max(mean_tokens, full_tokens / 5)))
           and (many == 0 or running <= many / 2)
end
if free() then last_turn_at = 0 end

local answers = {}
for _ = 1, tonumber(next_argument()) do
    local permit, wanted = next_argument(), tonumber(next_argument())
    local needed = math.min(wanted, full_tokens)
    local wait, reason = 0, NONE
    if per_min > 0 and requests < 1 then
        wait, reason = (1 - requests) * 60000 / per_min, REQUESTS
    end
    if tokens_per_min > 0 and tokens < needed then
        local more = (needed - tokens) * 60000 / tokens_per_min
        if more > wait then wait, reason = more, TOKENS end
    end
    if many > 0 and running >= many and mean_ms / many > wait then
        wait, reason = math.max(mean_ms / many, 1), CONCURRENCY
    elseif many > 0 and running >= many and reason == NONE then
        wait, reason = 1, CONCURRENCY
    end
    if paused_until > now and paused_until - now > wait then
        wait, reason = paused_until - now, PAUSE
    end
    if reason == NONE then
        requests, tokens, running = requests - 1, tokens - wanted, running + 1
        if many > 0 then redis.call('ZADD', KEYS[2], now + lasts, permit) end
    else
        -- Those who wait are told different times, a little closer than what comes allows, so that none of it is lost.
        local apart = 0
        if per_min > 0 then apart = 60000 / per_min end
        if tokens_per_min > 0 then apart = math.max(apart, mean_tokens * 60000 / tokens_per_min) end
        if many > 0 then apart = math.max(apart, mean_ms / many) end
        last_turn_at = math.max(last_turn_at + 0.8 * apart, now + wait)
        wait = math.max(1, math.ceil(last_turn_at - now))
    end
    answers[#answers + 1] = wait
    answers[#answers + 1] = reason
end
redis.call('HSET', KEYS[1], 'requests', tostring(requests), 'tokens', tostring(tokens), 'at', now,
           'paused_until', paused_until, 'last_turn_at', tostring(last_turn_at), 'mean_ms', tostring(mean_ms),
           'mean_tokens', tostring(mean_tokens))
answers[#answers + 1] = free() and 1 or 0
return answers

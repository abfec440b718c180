-- Entries of an event's log, in their order, up to a number of them and of bytes, or the first alone where it has more.
-- KEYS: the log. ARGV: the id behind which it reads, how many entries, how many bytes.
-- Gives: 1 where there may be more, else 0; the entries, each its id and its value.
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
local left, page = tonumber(ARGV[3]), {}
for n = 1, #entries do
    local value = entries[n][2][2]
    left = left - #value
    if n > 1 and left < 0 then return {1, page} end
    page[n] = {entries[n][1], value}
end
return {#entries == tonumber(ARGV[2]) and 1 or 0, page}

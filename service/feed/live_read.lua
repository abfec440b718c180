-- Entries of an event's log, in their order, up to a number of them and of bytes, or the first alone where it has more.
-- KEYS: the log. ARGV: the id behind which it reads, how many entries, how many bytes.
-- Gives: 1 where there may be more, else 0; the entries, each its id and its value.
-- It looks at a few at a time: of long entries it would copy a hundred times what it gives.
local after, most, left, page = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), {}
while #page < most do
    local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', math.min(32, most - #page))
    if #entries == 0 then return {0, page} end
    for _, entry in ipairs(entries) do
        local value = entry[2][2]
        left = left - #value
        if #page > 0 and left < 0 then return {1, page} end
        page[#page + 1], after = {entry[1], value}, entry[1]
    end
end
return {1, page}

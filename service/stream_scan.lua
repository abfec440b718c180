-- Entries of a stream in their order, for whoever looks through it.
-- KEYS: the stream. ARGV: from which id on, how many, the most bytes of a field.
-- Gives for each [id, field, value, …].
local found = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for n = 1, #found do
    local entry = {found[n][1]}
    for m = 1, #found[n][2] do entry[m + 1] = string.sub(found[n][2][m], 1, tonumber(ARGV[3])) end
    found[n] = entry
end
return found

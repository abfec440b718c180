-- Entries of a stream in their order, for whoever looks through it.
-- KEYS: the stream. ARGV: from which id on, how many, the most bytes of a field.
-- Gives for each [id, field, value, …].
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for n = 1, #entries do
    local entry = {entries[n][1]}
    for m = 1, #entries[n][2] do entry[m + 1] = string.sub(entries[n][2][m], 1, tonumber(ARGV[3])) end
    entries[n] = entry
end
return entries

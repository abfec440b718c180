-- Adds an entry for each event in one command: a command for each event would cost as much as to accept that event.
-- KEYS: the stream. ARGV: the events' ids.
for n = 1, #ARGV do
    local added = redis.pcall('XADD', KEYS[1], '*', 'id', ARGV[n])
    if type(added) == 'table' and added.err then return added end  -- XADD's own error: a raised one would have more text
end
return #ARGV

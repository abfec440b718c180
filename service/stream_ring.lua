-- An entry for each event that is to be worked on, in one command: one command each costs as much as what accepts an event.
-- KEYS: the stream. ARGV: the events' ids.
for n = 1, #ARGV do
    local added = redis.pcall('XADD', KEYS[1], '*', 'id', ARGV[n])
    if type(added) == 'table' and added.err then return added end  -- as XADD says it: a raised error would say more
end
return #ARGV

-- Entries of a stream for a consumer of a group, bounded in bytes whatever others have put there.
-- KEYS: the stream. ARGV: group, consumer, after ('>': new ones; an id: this consumer's pending ones behind it), the most
-- entries, the bytes after which no more are read, the most bytes of an entry, how many are read at a time.
-- Gives for each [id, field, value, …]; of what is larger than an entry may be, the field `event`, or the first fields, cut
-- off at one byte more. So a reply has no more than the bytes asked for and what is read at a time.
local after, most, bytes_max = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local entry_max, piece = tonumber(ARGV[6]), tonumber(ARGV[7])

local function bounded(fields)
    local size = 0
    for n = 1, #fields do size = size + #fields[n] end
    if size <= entry_max then return fields, size end
    for n = #fields - 1, 1, -2 do
        if fields[n] == 'event' then
            local cut = string.sub(fields[n + 1], 1, entry_max + 1)
            return {'event', cut}, #cut
        end
    end
    local cut_fields, left = {}, entry_max + 1
    for n = 1, #fields, 2 do
        if left <= 0 then break end
        local name = string.sub(fields[n], 1, left)
        local value = string.sub(fields[n + 1], 1, math.max(0, left - #name))
        cut_fields[#cut_fields + 1], cut_fields[#cut_fields + 2] = name, value
        left = left - #name - #value
    end
    return cut_fields, entry_max
end

local result, size = {}, 0
while #result < most and size < bytes_max do
    local count = math.min(piece, most - #result)
    local reply = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', count, 'STREAMS', KEYS[1], after)
    if type(reply) == 'table' and reply.err then return reply end
    if not reply or not reply[1] or #reply[1][2] == 0 then break end
    local entries = reply[1][2]
    for n = 1, #entries do
        local fields, bytes = {}, 0
        if entries[n][2] then fields, bytes = bounded(entries[n][2]) end
        table.insert(fields, 1, entries[n][1])
        result[#result + 1] = fields
        size = size + bytes
    end
    if after ~= '>' then after = entries[#entries][1] end
    if #entries < count then break end
end
return result

"""The Lua texts of what consumers of a stream do in one step. `shared.streams` calls them."""

BURY = """
-- KEYS stream, dead, emitted; ARGV consumer group, entry id, letter, 1 to delete the entry, group id or '',
-- 1 if the group has to be settled
if ARGV[6] == '1' and redis.call('GETBIT', KEYS[3], ARGV[5]) == 0 then return -1 end
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'm', ARGV[3], 'g', ARGV[5])
if ARGV[4] == '1' then redis.call('XDEL', KEYS[1], ARGV[2]) end
return 1
"""

PENDING = """
-- KEYS stream; ARGV consumer group, entry ids
local pending = {}
for i = 2, #ARGV do pending[i - 1] = #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1) end
return pending
"""

RENEW = """
-- KEYS stream; ARGV consumer group, consumer, new consumer, entry ids
local renewed = 0
for i = 4, #ARGV do
  local entry = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if entry and entry[2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[i], 'JUSTID')
    renewed = renewed + 1
  end
end
return renewed
"""

"""The scripts by which a trainer publishes versions and goes back to one, made like those of `shared.lua`."""

from shared.lua import EPOCH

ANNOUNCE = (
    EPOCH
    + """
-- KEYS trainer epoch, weights, versions; ARGV epoch, entry, most entries that are kept, version, its record
local epoch = check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'm', ARGV[2])
redis.call('HSET', KEYS[3], ARGV[4], ARGV[5])
return 1
"""
)
"""Engines take the newest entry, whoever wrote it."""

TAKE_TURN = (
    EPOCH
    + """
-- KEYS trainer epoch, memory; ARGV epoch, entry, most entries that are kept
local epoch = check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'm', ARGV[2])
return 1
"""
)
"""Engines obey the newest entry: a trainer that was replaced must not give away what its successor uses."""

NOTE_VERSION = (
    EPOCH
    + """
-- KEYS trainer epoch, versions, counters; ARGV epoch, version, its record, '1' if it counts as served
local epoch = check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
if ARGV[4] == '1' and tonumber(redis.call('HGET', KEYS[3], 'weight_version') or '-1') < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[3], 'weight_version', ARGV[2])
end
return 1
"""
)

ROLL_BACK = (
    EPOCH
    + """
-- KEYS trainer epoch, counters, steps, rollbacks, rollback; ARGV epoch, step, entry, version, groups of a step, what
-- becomes of the rollback that was asked for
local epoch = check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
local step, done = tonumber(ARGV[2]), tonumber(redis.call('HGET', KEYS[2], 'step') or '0')
local intended = tonumber(redis.call('HGET', KEYS[2], 'intended') or '0')
if intended == step and redis.call('HGET', KEYS[4], ARGV[2]) == ARGV[4] then return 0 end
if intended ~= step - 1 or done ~= step - 1 then return -2 end
redis.call('XADD', KEYS[3], '*', 'm', ARGV[3])
redis.call('HSET', KEYS[2], 'intended', ARGV[2])
redis.call('HINCRBY', KEYS[2], 'released', ARGV[5])
redis.call('HINCRBY', KEYS[2], 'rolled_back', ARGV[5])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[4])
redis.call('SET', KEYS[5], ARGV[6])
return 1
"""
)
"""The step takes up the slots of its groups, though it trains none: admission counts by steps."""

REFUSE_ROLLBACK = (
    EPOCH
    + """
-- KEYS trainer epoch, rollback; ARGV epoch, what becomes of the rollback that was asked for
local epoch = check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""
)

"""The Lua texts of the atomic steps. Keys and arguments are named at the top of each; `shared.scripts` calls them."""

from shared.topology import EVENTS

KEEP_S = 900
"""How long the attempts of a group that is not trained stay, for a person to look at."""
MOVE = (
    f"local KEEP_S, EVENTS_KEPT = {KEEP_S}, {EVENTS.keep_newest}"
    + """
local function move(tokens, accounts, state)
  local margins = redis.call('HGETALL', tokens)
  for i = 1, #margins, 2 do
    redis.call('HINCRBY', accounts, state .. '|' .. margins[i], margins[i + 1])
  end
end
local function stored_bytes(group, arrays)
  local bytes = 0
  for _, key in ipairs({group, arrays}) do
    for _, name in ipairs(redis.call('HKEYS', key)) do
      if name ~= 'of' then bytes = bytes + redis.call('HSTRLEN', key, name) end
    end
  end
  return bytes
end
"""
)
"""Tokens of a group leave `generated but undecided` for a state; `stored_bytes` is what it takes, arrays included."""

RELEASE = """
-- KEYS feeder lease, counters, cursor, prompts, eval groups; ARGV token, first id, limit or -1, counter, cursor field,
-- its value, evaluation mark or '', entries
local limit, counter, count = tonumber(ARGV[3]), ARGV[4], #ARGV - 7
local first, next_id = tonumber(ARGV[2]), tonumber(redis.call('HGET', KEYS[2], 'next_group_id') or '0')
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
if next_id == first + count and redis.call('HGET', KEYS[3], ARGV[5]) == ARGV[6] then return count end
if next_id ~= first then return -1 end
if limit >= 0 then
  local released = tonumber(redis.call('HGET', KEYS[2], counter) or '0')
  local dropped = tonumber(redis.call('HGET', KEYS[2], 'dropped') or '0')
  if released - dropped + count > limit then return -2 end
end
for i = 1, count do
  local entry = {'m', ARGV[7 + i], 'g', ARGV[2] + i - 1}
  if ARGV[7] ~= '' then
    entry[5], entry[6] = 'e', ARGV[7]
    redis.call('SETBIT', KEYS[5], ARGV[2] + i - 1, 1)
  end
  redis.call('XADD', KEYS[4], '*', unpack(entry))
end
redis.call('HINCRBY', KEYS[2], 'next_group_id', count)
redis.call('HINCRBY', KEYS[2], counter, count)
redis.call('HSET', KEYS[3], ARGV[5], ARGV[6])
return count
"""

FORWARD_ROLLOUTS = """
-- KEYS prompts, rollouts, arrays, emitted, dead groups, counters, keys to forget; ARGV consumer group, entry id of the
-- prompt, group id, name of this forward, then for each attempt: its number, its arrays, number of fields and values of
-- its entry, these
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
for i = 7, #KEYS do redis.call('UNLINK', KEYS[i]) end
if redis.call('GETBIT', KEYS[4], ARGV[3]) == 1 and redis.call('SISMEMBER', KEYS[5], ARGV[3]) == 0 then return 0 end
if redis.call('HSETNX', KEYS[3], 'of', ARGV[4]) == 0 then return 0 end
local at, bytes = 5, 0
while at <= #ARGV do
  local last = at + 2 + tonumber(ARGV[at + 2])
  redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
  redis.call('XADD', KEYS[2], '*', 'f', ARGV[4], unpack(ARGV, at + 3, last))
  at, bytes = last + 1, bytes + #ARGV[at + 1]
end
redis.call('HINCRBY', KEYS[6], 'stored_bytes', bytes)
return 1
"""
"""The first forward of a group is the only one: an entry carries its name, and is of no use beside other arrays.

A prompt that Redis does not know as delivered publishes nothing, nor does a group that is decided and not dead.
"""

JOIN = """
-- KEYS emitted, accounts, counters, dead groups, the stream of attempts, then for each group its attempts (scored or
-- not), tokens and arrays; ARGV a msgpack list of attempts: place of its group's keys, group id, group size, attempt,
-- name of its forward, its margins and their tokens in turns (none: it is not accounted yet), bytes; then either the
-- entry whose payload they end, and how many bytes of it they replace, or '' and 0 for a whole payload; its arrays, if
-- they come with it
local function payload(entry_id, replaced, bytes)
  if entry_id == '' then return bytes end
  local entry = redis.call('XRANGE', KEYS[5], entry_id, entry_id)[1]
  for i = 1, entry and #entry[2] or 0, 2 do
    if entry[2][i] == 'm' then return string.sub(entry[2][i + 1], 1, -1 - replaced) .. bytes end
  end
end
local sums = {}
local function add(key, name, amount)
  sums[key] = sums[key] or {}
  sums[key][name] = (sums[key][name] or 0) + amount
end
local function count(tokens, margins, dead)
  for i = 1, #margins, 2 do
    add(tokens, margins[i], margins[i + 1])
    add(KEYS[2], 'generated|' .. margins[i], margins[i + 1])
    if dead then add(KEYS[2], 'dropped:dead|' .. margins[i], margins[i + 1]) end
  end
end
local function store(key, group_id, size, attempt, name, margins, bytes, entry_id, replaced, arrays)
  local settled = redis.call('GETBIT', KEYS[1], group_id) == 1
  local dead = settled and redis.call('SISMEMBER', KEYS[4], group_id) == 1
  if settled and not dead then return 2 end
  local scored = payload(entry_id, replaced, bytes)
  if not scored then return 2 end
  if not arrays and redis.call('HGET', KEYS[key + 2], 'of') ~= name then return 4 end
  local fresh = redis.call('HSETNX', KEYS[key], attempt, scored)
  if fresh == 1 and arrays then
    redis.call('HSET', KEYS[key + 2], attempt, arrays, 'of', name)
  end
  if fresh == 1 and #margins > 0 then
    count(KEYS[key + 1], margins, dead)
    add(KEYS[3], 'stored_bytes', #scored + (arrays and #arrays or 0))
  end
  if dead then return 3 + 8 * fresh end
  return (redis.call('HLEN', KEYS[key]) >= size and 1 or 0) + 8 * fresh
end
local answers = {}
for i, attempt in ipairs(cmsgpack.unpack(ARGV[1])) do answers[i] = store(unpack(attempt)) end
for key, amounts in pairs(sums) do
  for name, amount in pairs(amounts) do redis.call('HINCRBY', key, name, amount) end
end
return answers
"""
"""An entry that is gone was joined by another worker, or Redis lost it and its group is released anew.

8 is added where this call stored the attempt.
"""

EMIT = """
-- KEYS emitted, counters, groups; ARGV for each group its id, entry, tokens
local emitted = 0
for i = 1, #ARGV, 3 do
  if redis.call('SETBIT', KEYS[1], ARGV[i], 1) == 0 then
    redis.call('XADD', KEYS[3], '*', 'm', ARGV[i + 1], 'g', ARGV[i])
    redis.call('HINCRBY', KEYS[2], 'generated_tokens', ARGV[i + 2])
    emitted = emitted + 1
  end
end
if emitted > 0 then redis.call('HINCRBY', KEYS[2], 'emitted', emitted) end
return emitted
"""

EVALUATE = (
    MOVE
    + """
-- KEYS emitted, counters, evals, evaluated, tally, tokens, accounts, group, arrays; ARGV group id, entry, field,
-- amount, ...
if redis.call('SETBIT', KEYS[1], ARGV[1], 1) == 1 then return 0 end
redis.call('SETBIT', KEYS[4], ARGV[1], 1)
redis.call('XADD', KEYS[3], '*', 'm', ARGV[2], 'g', ARGV[1])
redis.call('HINCRBY', KEYS[2], 'eval_done', 1)
redis.call('HINCRBY', KEYS[2], 'stored_bytes', 0 - stored_bytes(KEYS[8], KEYS[9]))
for i = 3, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[5], ARGV[i], ARGV[i + 1]) end
move(KEYS[6], KEYS[7], 'evaluated')
redis.call('UNLINK', KEYS[6])
for i = 8, 9 do redis.call('EXPIRE', KEYS[i], KEEP_S) end
return 1
"""
)

DROP = (
    MOVE
    + """
-- KEYS emitted, dropped, trained, counters, events, tokens, accounts, group, dead groups, tally, partial, its owner,
-- groups, unscored, arrays; ARGV group id, reason, event, counter prefix, stage, entry id, consumer group, tally field,
-- amount, ... An evaluation's groups cannot be sent again: it is over by then.
if ARGV[5] == 'ready' then
  if redis.call('GETBIT', KEYS[3], ARGV[1]) == 1 or redis.call('GETBIT', KEYS[2], ARGV[1]) == 1 then return 0 end
  redis.call('XACK', KEYS[13], ARGV[7], ARGV[6])
  redis.call('XDEL', KEYS[13], ARGV[6])
  redis.call('SETBIT', KEYS[1], ARGV[1], 1)
elseif redis.call('SETBIT', KEYS[1], ARGV[1], 1) == 1 then
  return 0
end
redis.call('SETBIT', KEYS[2], ARGV[1], 1)
redis.call('XADD', KEYS[5], 'MAXLEN', '~', EVENTS_KEPT, '*', 'm', ARGV[3], 'g', ARGV[1])
redis.call('HINCRBY', KEYS[4], ARGV[4] .. 'dropped', 1)
redis.call('HINCRBY', KEYS[4], ARGV[4] .. 'dropped:' .. ARGV[2], 1)
for i = 8, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[10], ARGV[i], ARGV[i + 1]) end
move(KEYS[6], KEYS[7], 'dropped:' .. ARGV[2])
redis.call('UNLINK', KEYS[11], KEYS[12])
if ARGV[2] == 'dead' and ARGV[4] == '' then
  redis.call('SADD', KEYS[9], ARGV[1])
else
  redis.call('HINCRBY', KEYS[4], 'stored_bytes', 0 - stored_bytes(KEYS[8], KEYS[15]))
  redis.call('UNLINK', KEYS[6], KEYS[14])
  redis.call('EXPIRE', KEYS[8], KEEP_S)
  redis.call('EXPIRE', KEYS[15], KEEP_S)
end
return 1
"""
)

TAKE_OVER = """
-- KEYS trainer epoch, counters; ARGV microseconds of the caller's clock: what a rolled back Redis gives out is new all
-- the same. A version of a step that Redis has lost is taken back, or admission would count on it.
local epoch = string.format('%.0f', math.max(tonumber(redis.call('GET', KEYS[1]) or '0') + 1, tonumber(ARGV[1])))
redis.call('SET', KEYS[1], epoch)
local step = tonumber(redis.call('HGET', KEYS[2], 'step') or '0')
if tonumber(redis.call('HGET', KEYS[2], 'weight_version') or '-1') > step then
  redis.call('HSET', KEYS[2], 'weight_version', step)
end
return epoch
"""

EPOCH = """
local function check_epoch(key, mine)
  local epoch = tonumber(redis.call('GET', key) or '0')
  if epoch == tonumber(mine) then return 0 end
  if epoch > tonumber(mine) then return -1 end
  return -2
end
"""
"""-1: a newer trainer took over; -2: Redis lost the moment in which this one did."""

INTEND = (
    EPOCH
    + """
-- KEYS trainer epoch, counters, trained, steps, groups, emitted, dropped; ARGV epoch, step, entry, consumer group,
-- number of groups, stale ones among them, group ids, entry ids
local epoch = check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
local intended = tonumber(redis.call('HGET', KEYS[2], 'intended') or '0')
local count = tonumber(ARGV[5])
if intended == tonumber(ARGV[2]) then
  for i = 7, 6 + count do
    if redis.call('GETBIT', KEYS[3], ARGV[i]) == 0 then return -2 end
  end
  return 0
end
if intended ~= tonumber(ARGV[2]) - 1 then return -2 end
local received = #ARGV > 6 + count
for i = 7, 6 + count do
  if redis.call('GETBIT', KEYS[3], ARGV[i]) == 1 or redis.call('GETBIT', KEYS[7], ARGV[i]) == 1 then return -2 end
  -- an entry that the trainer holds and Redis lost: its group is joined again, and may come out differently
  if received and redis.call('GETBIT', KEYS[6], ARGV[i]) == 0 then return -2 end
end
for i = 7 + count, #ARGV do
  -- an entry whose delivery Redis lost would be delivered again
  if #redis.call('XPENDING', KEYS[5], ARGV[4], ARGV[i], ARGV[i], 1) == 0 then return -2 end
end
for i = 7, 6 + count do redis.call('SETBIT', KEYS[3], ARGV[i], 1) end
for i = 7 + count, #ARGV do redis.call('XACK', KEYS[5], ARGV[4], ARGV[i]) end
redis.call('XADD', KEYS[4], '*', 'm', ARGV[3])
redis.call('HSET', KEYS[2], 'intended', ARGV[2])
if ARGV[6] ~= '0' then redis.call('HINCRBY', KEYS[2], 'stale_trained', ARGV[6]) end
return 1
"""
)

COMMIT = (
    MOVE
    + EPOCH
    + """
-- KEYS trainer epoch, counters, steps, accounts, tokens of each group; ARGV epoch, step, entry, groups, trained tokens
local epoch = check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
local done = tonumber(redis.call('HGET', KEYS[2], 'step') or '0')
if done >= tonumber(ARGV[2]) then return 0 end
local intended = tonumber(redis.call('HGET', KEYS[2], 'intended') or '0')
if done ~= tonumber(ARGV[2]) - 1 or intended < tonumber(ARGV[2]) then return -2 end
redis.call('XADD', KEYS[3], '*', 'm', ARGV[3])
redis.call('HSET', KEYS[2], 'step', ARGV[2])
redis.call('HINCRBY', KEYS[2], 'trained', ARGV[4])
redis.call('HINCRBY', KEYS[2], 'trained_tokens', ARGV[5])
for i = 5, #KEYS do
  move(KEYS[i], KEYS[4], 'trained')
  redis.call('UNLINK', KEYS[i])
end
return 1
"""
)

FORGET = (
    MOVE
    + EPOCH
    + """
-- KEYS trainer epoch, counters, then of each group to forget its attempts and its arrays; ARGV epoch, the step
-- whose groups they are, or 0 for groups of no step
local epoch = check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
local step, forgotten = tonumber(ARGV[2]), tonumber(redis.call('HGET', KEYS[2], 'forgotten_step') or '0')
if step > forgotten + 1 then return -2 end
if step > forgotten then redis.call('HSET', KEYS[2], 'forgotten_step', step) end
local bytes = 0
for i = 3, #KEYS, 2 do
  bytes = bytes + stored_bytes(KEYS[i], KEYS[i + 1])
  redis.call('UNLINK', KEYS[i], KEYS[i + 1])
end
redis.call('HINCRBY', KEYS[2], 'stored_bytes', 0 - bytes)
return bytes
"""
)

REDRIVE = (
    MOVE
    + """
-- KEYS emitted, dropped, counters, dead, dead groups, events, tokens, accounts, arrays, then for each letter its
-- stream; ARGV group id, event, value of the emitted bit, number of letters, their ids, their payloads
if redis.call('SREM', KEYS[5], ARGV[1]) == 0 then return 0 end
redis.call('SETBIT', KEYS[1], ARGV[1], ARGV[3])
redis.call('SETBIT', KEYS[2], ARGV[1], 0)
redis.call('HINCRBY', KEYS[3], 'dropped', -1)
redis.call('HINCRBY', KEYS[3], 'dropped:dead', -1)
redis.call('HINCRBY', KEYS[3], 'redriven', 1)
local margins = redis.call('HGETALL', KEYS[7])
for i = 1, #margins, 2 do redis.call('HINCRBY', KEYS[8], 'dropped:dead|' .. margins[i], 0 - margins[i + 1]) end
local count = tonumber(ARGV[4])
local name = redis.call('HGET', KEYS[9], 'of')
for i = 1, count do
  local entry = {'m', ARGV[4 + count + i], 'g', ARGV[1]}
  if name then entry[5], entry[6] = 'f', name end
  redis.call('XADD', KEYS[9 + i], '*', unpack(entry))
  redis.call('XDEL', KEYS[4], ARGV[4 + i])
end
redis.call('XADD', KEYS[6], 'MAXLEN', '~', EVENTS_KEPT, '*', 'm', ARGV[2], 'g', ARGV[1])
return 1
"""
)

DISCARD = (
    MOVE
    + """
-- KEYS counters, dead, dead groups, group, unscored, tokens, arrays; ARGV group id or '', ids of the dead letters
if ARGV[1] ~= '' and redis.call('SREM', KEYS[3], ARGV[1]) == 1 then
  redis.call('HINCRBY', KEYS[1], 'stored_bytes', 0 - stored_bytes(KEYS[4], KEYS[7]))
  redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6], KEYS[7])
end
local gone = 0
for i = 2, #ARGV do gone = gone + redis.call('XDEL', KEYS[2], ARGV[i]) end
return gone
"""
)

APPEND_CHUNK = """
-- KEYS partial, its owner, emitted; ARGV group id, owner, entries
if redis.call('GET', KEYS[2]) ~= ARGV[2] or redis.call('GETBIT', KEYS[3], ARGV[1]) == 1 then return 0 end
for i = 3, #ARGV do redis.call('XADD', KEYS[1], '*', 'm', ARGV[i]) end
return 1
"""

ADVANCE = (
    EPOCH
    + """
-- KEYS trainer epoch, counters; ARGV epoch or '', counter, value
local epoch = ARGV[1] == '' and 0 or check_epoch(KEYS[1], ARGV[1])
if epoch ~= 0 then return epoch end
if tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '-1') >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1
"""
)

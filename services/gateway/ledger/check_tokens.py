"""The accounts of tokens and the tokens of each undecided group, in one script -> margins that do not add up."""

from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from services.gateway.ledger.check_groups import Verdict
from services.gateway.ledger.read_records import Records
from services.gateway.ledger.take_snapshot import Snapshot, ids, numbers
from shared.accounts import KINDS, Margins, by_state, undecided
from shared.topology import Keys

MOST_GROUPS = 10_000
"""Groups that one script adds up: half a second on a busy machine, in which Redis answers nobody else."""

_ADD_UP = """
-- KEYS accounts, counters, dead groups, dropped, evaluated; ARGV prefixes of the groups' tokens, attempts and arrays,
-- the id after the last known one, ids; answers accounts, undecided and dead tokens by margin, bytes of attempts as
-- they are, and as they are counted.
-- The names of groups are made here: some are released after the ids were read. They lie in the run's slot like all.
local sums, bytes = {{}, {}}, 0
local function add(group)
  local dead = redis.call('SISMEMBER', KEYS[3], group) == 1
  local margins = redis.call('HGETALL', ARGV[1] .. group)
  for i = 1, #margins, 2 do
    local into = sums[dead and 2 or 1]
    into[margins[i]] = (into[margins[i]] or 0) + tonumber(margins[i + 1])
  end
  if redis.call('GETBIT', KEYS[5], group) == 1 or (redis.call('GETBIT', KEYS[4], group) == 1 and not dead) then
    return
  end
  for i = 2, 3 do
    for _, attempt in ipairs(redis.call('HKEYS', ARGV[i] .. group)) do
      if attempt ~= 'of' then bytes = bytes + redis.call('HSTRLEN', ARGV[i] .. group, attempt) end
    end
  end
end
local function flat(margins)
  local list = {}
  for margin, tokens in pairs(margins) do list[#list + 1], list[#list + 2] = margin, tostring(tokens) end
  return list
end
for i = 5, #ARGV do add(ARGV[i]) end
for group = tonumber(ARGV[4]), tonumber(redis.call('HGET', KEYS[2], 'next_group_id') or '0') - 1 do
  add(string.format('%d', group))
end
return {redis.call('HGETALL', KEYS[1]), flat(sums[1]), flat(sums[2]), bytes,
  tonumber(redis.call('HGET', KEYS[2], 'stored_bytes') or '0')}
"""


@dataclass(frozen=True, slots=True)
class Sums:
    """One moment of the accounts, and what the groups say."""

    accounts: dict[str, int]
    undecided: Margins
    dead: Margins
    stored_bytes: int
    counted_bytes: int


async def check_tokens(redis: Redis, keys: Keys, before: Snapshot, records: Records, verdict: Verdict) -> None:
    """generated = trained + evaluated + dropped + undecided by each margin; what is undecided belongs to groups.

    `before` is an earlier moment: which groups have tokens or attempts of their own. Later ones have higher ids.
    """
    with verdict.proves("generated = trained + evaluated + dropped + undecided for each dataset, worker and version"):
        check_accounts(before.accounts, verdict)
    known = undecided_groups(before, records) | _kept(before, records)
    wanted = {group_id for group_id in known if group_id < before.groups}
    if len(wanted) > MOST_GROUPS:
        verdict.checks.append(
            f"tokens of single groups were not added up: {len(wanted)} groups are stored, and more than {MOST_GROUPS}"
            " would hold up Redis; verify again when fewer are under way"
        )
        return
    sums = await _add_up(redis, keys, before.groups, sorted(wanted))
    with verdict.proves(f"undecided tokens and stored bytes equal those of {len(wanted)} groups, each"):
        check_sums(sums, verdict)


def check_sums(sums: Sums, verdict: Verdict) -> None:
    """What the accounts call undecided, or dead and kept, is what the groups have; so are the stored bytes."""
    rest, dead = undecided(sums.accounts), by_state(sums.accounts).get("dropped:dead", {})
    for margin in sorted({*rest, *sums.undecided}):
        told, seen = rest.get(margin, 0), sums.undecided.get(margin, 0)
        verdict.expect(told == seen, f"tokens of {_spoken(margin)}: {told} are undecided, but groups have {seen}")
    for margin, tokens in sums.dead.items():
        counted = dead.get(margin, 0)
        verdict.expect(tokens <= counted, f"tokens of {_spoken(margin)}: {tokens} kept as dead, {counted} counted")
    verdict.expect(
        sums.stored_bytes == sums.counted_bytes,
        f"bytes of stored attempts, by counter and added up, differ: {sums.counted_bytes} and {sums.stored_bytes}",
    )


def check_accounts(accounts: dict[str, int], verdict: Verdict) -> None:
    """No state has more than was generated, and datasets, workers and versions add up to the same in each state."""
    for margin, tokens in sorted(undecided(accounts).items()):
        if tokens < 0:
            verdict.problems.append(f"tokens of {_spoken(margin)}: {-tokens} more were decided than generated")
    for state, margins in by_state(accounts).items():
        totals = {kind: kind_total(margins, kind) for kind in KINDS}
        told = ", ".join(f"{total} by {kind}" for kind, total in totals.items())
        verdict.expect(len(set(totals.values())) == 1, f"tokens that are {state} do not add up: {told}")


def kind_total(margins: Margins, kind: str) -> int:
    """Tokens of all datasets, of all workers, or of all versions."""
    return sum(tokens for margin, tokens in margins.items() if margin.startswith(f"{kind}|"))


def undecided_groups(now: Snapshot, records: Records) -> set[int]:
    """The groups whose tokens are not moved to a state yet, and the dead ones, which keep a copy."""
    step = now.count("step")
    in_steps = {g for number, groups in records.intents.items() if number > step for g in groups}
    return {*ids(now.unsettled), *ids(now.ready), *in_steps, *now.dead}


def _kept(now: Snapshot, records: Records) -> set[int]:
    """Trained groups that no checkpoint covers: their attempts count as stored."""
    forgotten = now.count("forgotten_step")
    return {g for number, groups in records.intents.items() if number > forgotten for g in groups}


async def _add_up(redis: Redis, keys: Keys, next_id: int, group_ids: list[int]) -> Sums:
    names = [keys.accounts, keys.counters, keys.dead_groups, keys.dropped, keys.evaluated]
    prefixes = [place(0).removesuffix("0") for place in (keys.tokens, keys.group, keys.arrays)]
    script = redis.register_script(_ADD_UP)
    answer = cast(list[Any], await script(keys=names, args=[*prefixes, next_id, *group_ids]))
    accounts, open_tokens, dead_tokens = (numbers(dict(zip(flat[::2], flat[1::2], strict=True))) for flat in answer[:3])
    return Sums(accounts, open_tokens, dead_tokens, int(answer[3]), int(answer[4]))


def _spoken(margin: str) -> str:
    return " ".join(margin.split("|", 1))

"""Long attempts whose worker dies at any moment: another one continues them, and nothing is made up or lost."""

import asyncio
import random

import pytest

from services.rollout import partial_group
from services.rollout.generate_group import GroupGenerator
from services.rollout.partial_group import PartialGroup, Partials
from services.rollout.refusals import Superseded
from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler
from shared.await_redis import AwaitRedis
from shared.messages import Prompt, expand
from shared.scripts import Ledger
from shared.tasks import end
from shared.topology import Keys
from tests.conftest import until
from tests.services.rollout.fake_router import Cut, piece

KEYS = Keys("r1")
LENGTHS = (23, 40, 9)
"""Tokens of the three attempts of a group; which one a request continues is told by its first token."""


def token(attempt: int, at: int) -> int:
    return attempt if at == 0 else 10 + (31 * attempt + 7 * at) % 200


class Source:
    """Each attempt has the same tokens whoever asks, and from wherever; versions go up with the requests."""

    def __init__(self, prompt_length, rng=None, seconds=0.0, limit=10**9):
        self.prompt_length, self.rng, self.seconds, self.limit = prompt_length, rng, seconds, limit
        self.requests = []
        self.sent = 0
        self.more = asyncio.Event()

    async def respond(self, body):
        done = body["input_ids"][self.prompt_length :]
        self.requests.append(len(done))
        count = body["sampling_params"]["n"]
        attempts = list(range(count)) if not done else [done[0]]
        return 200, self._events(attempts, len(done), len(self.requests), indexed=count > 1)

    async def _events(self, attempts, done, version, indexed):
        at = dict.fromkeys(attempts, done)
        while at:
            for attempt in list(at):
                if self.sent >= self.limit:
                    self.more.clear()
                    await self.more.wait()
                start = at[attempt]
                stop = min(start + 3, LENGTHS[attempt])
                finish = "stop" if stop == LENGTHS[attempt] else ""
                if self.rng and start and self.rng.random() < 0.1:
                    raise Cut
                tokens = [token(attempt, i) for i in range(start, stop)]
                self.sent += len(tokens)
                index = attempts.index(attempt) if indexed else None
                yield piece(tokens, stop - done, finish, version, index=index)
                at[attempt] = stop
                if finish:
                    del at[attempt]
            await asyncio.sleep(self.seconds)


@pytest.fixture
async def connections(router):
    async with RouterConnections(router.url, 10) as client:
        yield client


@pytest.fixture
def worker(redis, log, connections, tokenizer):
    def make(name, tokens=4, generate=None):
        partials = Partials(Ledger(redis, KEYS), log, name, tokens, 0.5, 10, AwaitRedis(log, KEYS.run))
        return GroupGenerator(tokenizer, Sampler(connections, log), generate, name, partials)

    return make


def prompt(tokens=60) -> Prompt:
    return Prompt(7, "train", "sums", 1, "1+1=", len(LENGTHS), sampling={"max_new_tokens": tokens})


def check(rollouts):
    assert [r.token_ids.tolist() for r in rollouts] == [
        [token(attempt, i) for i in range(length)] for attempt, length in enumerate(LENGTHS)
    ]
    for rollout in rollouts:
        assert rollout.logprobs == pytest.approx(-rollout.token_ids / 1000)
        assert len(expand(rollout.weight_versions)) == len(rollout.token_ids)
        assert rollout.finish_reason == "stop"


async def kill(task, monkeypatch):
    """As SIGKILL: nothing is stored on the way out."""

    async def nothing(*_):
        return None

    with monkeypatch.context() as dead:
        dead.setattr(PartialGroup, "_store_the_rest", nothing)
        await end(task)


@pytest.mark.parametrize("seed", range(12))
async def test_whenever_workers_die_and_streams_break_the_attempts_are_those_of_one_worker(
    redis, router, worker, tokenizer, monkeypatch, seed
):
    rng = random.Random(seed)
    source = Source(len(tokenizer.encode("1+1=")), rng, seconds=0.002)
    router.respond = source.respond
    monkeypatch.setattr("services.rollout.sampler.FIRST_WAIT_S", 0.001)
    monkeypatch.setattr("services.rollout.grow_replies.FIRST_WAIT_S", 0.001)
    before = [0] * len(LENGTHS)
    for life in range(4):
        task = asyncio.create_task(worker(f"w{life}").generate(prompt()))
        await asyncio.sleep(rng.uniform(0, 0.05))
        await kill(task, monkeypatch)
        if task.cancelled():
            read = partial_group.read_chunks(await chunks(redis))
            held = [[t for s in read.get(a, []) for t in s.token_ids] for a in range(len(LENGTHS))]
            for attempt, tokens in enumerate(held):
                assert tokens == [token(attempt, i) for i in range(len(tokens))], "a prefix of the attempt"
                assert len(tokens) >= before[attempt], "nothing that was stored is lost"
            before = [len(tokens) for tokens in held]
    check(await worker("last").generate(prompt()))


async def chunks(redis):
    return [partial_group.CODEC.decode(fields[b"m"]) for _, fields in await redis.xrange(KEYS.partial(7))]


async def test_at_most_one_chunk_is_lost_and_what_is_finished_is_not_generated_again(
    redis, router, worker, tokenizer, monkeypatch
):
    source = Source(len(tokenizer.encode("1+1=")), limit=45)
    router.respond = source.respond
    task = asyncio.create_task(worker("first", tokens=4).generate(prompt()))

    async def third_is_stored():
        return any(chunk.attempt == 2 and chunk.finish_reason for chunk in await chunks(redis))

    async def all_sent():
        return source.sent >= 45

    await until(third_is_stored)
    await until(all_sent)
    await kill(task, monkeypatch)
    source.limit = 10**9
    check(await worker("second").generate(prompt()))
    assert source.requests[0] == 0
    resumed = sorted(source.requests[1:])
    assert len(resumed) == 2, "the third attempt was complete"
    assert sum(resumed) >= 45 - LENGTHS[2] - 2 * (4 + 3), "each lacks at most a chunk and a piece"


async def test_short_answers_are_neither_streamed_nor_stored(redis, router, worker):
    rollouts = await worker("w", tokens=60).generate(prompt(60))
    assert [r.token_ids.tolist() for r in rollouts] == [[*b"hi!", 258]] * 3
    assert "stream" not in router.requests[0]
    assert not await redis.exists(*worker("w").forget(prompt()))
    assert worker("w", tokens=60).forget(prompt(60)) == ()


async def test_a_worker_that_lost_its_group_leaves_it(redis, router, worker, tokenizer):
    source = Source(len(tokenizer.encode("1+1=")), limit=9)
    router.respond = source.respond
    task = asyncio.create_task(worker("zombie", tokens=1).generate(prompt()))

    async def begun():
        return bool(await chunks(redis))

    await until(begun)
    source.limit = 10**9
    heir = asyncio.create_task(worker("heir", tokens=1).generate(prompt()))

    async def taken_over():
        return b"heir" in (await redis.get(KEYS.partial_owner(7)) or b"")

    await until(taken_over)
    source.more.set()
    with pytest.raises(Superseded):
        await task
    check(await heir)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_plugin_gets_what_was_recorded_until_it_failed_on_it(router, worker, tokenizer, fails):
    """The other attempts keep their replies; the one whose function raised is made again."""
    asked = []

    async def respond(body):
        asked.append(len(body["input_ids"]))

        async def events():
            yield piece([50 + len(asked)], 1, "stop")

        return 200, events()

    replies, tries = [], []

    async def generate(prompt, session):
        first = await session.sample()
        session.add([1, 2])
        second = await session.sample()
        replies.append((session.attempt, first.token_ids, second.token_ids))
        tries.append(session.attempt)
        if session.attempt == 1 and tries.count(1) == 1:
            while len(tries) < 3:
                await asyncio.sleep(0)
            if fails:
                raise ZeroDivisionError
            await asyncio.sleep(10)

    router.respond = respond
    work = asyncio.create_task(worker("first", generate=generate).generate(prompt()))
    if fails:
        with pytest.raises(ZeroDivisionError):
            await work
    else:
        while len(tries) < 3:
            await asyncio.sleep(0.01)
        await end(work)
    assert len(asked) == 6
    rollouts = await worker("second", generate=generate).generate(prompt())
    assert len(asked) == (8 if fails else 6)
    first, again = sorted(replies[:3]), sorted(replies[3:])
    assert [a for a, b in zip(first, again, strict=True) if a != b] == ([first[1]] if fails else [])
    assert [r.loss_mask for r in rollouts] == [[(1, 1), (0, 2), (1, 1)]] * 3

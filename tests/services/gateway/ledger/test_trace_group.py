"""The lineage of a group over HTTP: from its prompt to the weights it trained, in Redis, in the archive, and after."""

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.gateway.ledger import trace_group
from services.gateway.parts import Parts
from services.trainer.archive import open_archive, write_step
from shared.archive import ArchivedStep
from shared.messages import Rendezvous, StepIntent, WeightVersion
from shared.version_ledger import with_announcement
from tests.services.gateway.ledger.played_run import PlayedRun

STATES = {
    0: "trained",
    5: "intended",
    8: "ready",
    9: "dropped",
    10: "dead",
    11: "evaluated",
    13: "joining",
    14: "rollouts",
    15: "prompts",
}


@pytest.fixture
async def run(redis: Redis) -> PlayedRun:
    run = await PlayedRun.open(redis)
    await run.everywhere()
    place = Rendezvous("h", 1, "g", "gloo", 0.0, 0.0)
    for version in (0, 1):
        one = WeightVersion(version, version, [], f"checksum-{version}", {}, place)
        await run.ledger.announce(run.epoch, one, with_announcement(None, one, 1.0))
    return run


async def lineage(client: httpx.AsyncClient, group_id: int) -> dict[str, Any]:
    answer = await client.get(f"/v1/runs/r1/lineage/{group_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_trained_group_is_followed_from_its_prompt_to_the_checksum_of_its_weights(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    found = await lineage(client, 2)
    assert (found["state"], found["prompt"], found["label"], found["dataset"], found["row"]) == (
        "trained",
        "2+1=",
        "2",
        "sums",
        2,
    )
    assert (found["step"], found["step_committed"], found["weight_version"]) == (1, True, 1)
    assert (found["checksum"], found["source"], found["note"]) == ("checksum-1", "redis", "")
    assert found["sampled_by"] == {"0": "checksum-0"}
    first, second = found["attempts"]
    assert (first["worker"], second["worker"], second["response_tokens"]) == ("w0", "w1", 4)
    assert (first["weight_versions"], first["finish_reason"], first["reward"]) == ([[0, 3]], "stop", 0.5)


async def test_the_state_is_that_of_the_ledger_in_every_place(client: httpx.AsyncClient, run: PlayedRun) -> None:
    found = {group_id: await lineage(client, group_id) for group_id in STATES}
    assert {group_id: one["state"] for group_id, one in found.items()} == STATES
    assert (found[5]["step"], found[5]["step_committed"], found[5]["checksum"]) == (2, False, None)
    assert (found[9]["dropped_because"], found[9]["events"][0]["event"]) == ("filter", "dropped")
    assert (found[10]["dropped_because"], len(found[10]["attempts"])) == ("dead", 2)
    assert (found[15]["prompt"], found[15]["attempts"], found[15]["source"]) == ("15+1=", [], "redis")
    assert "none of its attempts is scored yet" in found[14]["note"]
    assert (found[11]["kind"], found[11]["dataset"]) == ("eval", "held")


async def test_attempts_that_have_left_redis_come_from_the_archive_or_are_told_to_be_gone(
    client: httpx.AsyncClient, run: PlayedRun, parts: Parts
) -> None:
    kept = await run.redis.hgetall(run.keys.group(3))
    await run.ledger.forget(run.epoch, [0, 1, 2, 3])
    gone = await lineage(client, 3)
    assert (gone["state"], gone["attempts"], gone["source"], gone["step"]) == ("trained", [], "none", 1)
    assert "left Redis" in gone["note"]
    assert "trainer.archive = true" in gone["note"]
    folder = parts.runs_folder / "r1"
    open_archive(folder, f"{run.record.created:.6f}")
    payloads = [[kept[b"0"], kept[b"1"]] if group == 3 else [] for group in range(4)]
    path = write_step(folder, ArchivedStep(StepIntent(1, [0, 1, 2, 3], 0, 1), {}, payloads))
    found = await lineage(client, 3)
    assert (found["source"], found["note"], found["prompt"]) == ("archive", "", "3+1=")
    assert [one["attempt"] for one in found["attempts"]] == [0, 1]
    path.write_bytes(b"damaged")
    assert "is damaged" in (await lineage(client, 3))["note"]


async def test_a_group_that_is_nowhere_is_lost_and_one_that_was_never_released_is_a_404(
    client: httpx.AsyncClient, run: PlayedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_group, "AGAIN_S", 0.01)
    await run.redis.xtrim(run.prompts.key, maxlen=0)
    assert (await lineage(client, 16))["state"] == "lost"
    answer = await client.get("/v1/runs/r1/lineage/18")
    assert (answer.status_code, "released 18 groups" in answer.json()["error"]["message"]) == (404, True)

"""/v1/runs over HTTP: what is refused at creation, states of a stop, steps and samples."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis.asyncio import Redis

from services.gateway.dataset_store import DatasetStore
from shared.joining import complete
from shared.messages import Rollout, StepCommit, StepIntent
from shared.runs import Runs
from shared.scripts import Ledger
from shared.topology import ACTIVE, QUEUE, Keys
from tests.services.gateway.gateway_cases import (
    add,
    announce_all,
    lines,
    pairs,
    run_settings,
    run_tree,
    sums,
    written_run_tree,
)
from tests.services.gateway.ledger.played_run import PlayedRun

KEYS = Keys("r1")
TOML = """name = "r2"
[model]
path = "some/model"
[[data.datasets]]
name = "sums"
[trainer]
steps = 3
"""


async def message(client: httpx.AsyncClient, status: int, tree: dict[str, Any]) -> str:
    answer = await client.post("/v1/runs", json=tree)
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


async def test_a_run_is_created_from_json_or_toml_and_shown(client: httpx.AsyncClient, store: DatasetStore) -> None:
    await add(store, "sums", sums(3))
    first = await client.post("/v1/runs", json=run_tree())
    second = await client.post("/v1/runs", content=TOML, headers={"content-type": "application/toml; charset=utf-8"})
    assert (first.status_code, second.status_code) == (201, 201)
    run = first.json()
    assert (run["run"], run["kind"], run["state"], run["steps"]) == ("r1", "rl", "queued", 10)
    assert (run["weight_version"], run["evaluations"], run["metrics"]) == (None, [], {})
    assert run["settings"]["rollout"]["group_size"] == 2
    assert [one["run"] for one in (await client.get("/v1/runs")).json()["runs"]] == ["r1", "r2"]
    assert (await client.get("/v1/runs/r1")).json() == run


async def test_settings_that_cannot_run_are_refused_with_what_to_write(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis, tmp_path: Path
) -> None:
    await add(store, "sums", sums(3))
    await add(store, "bare", lines({"prompt": "a"}))
    await add(store, "numbers", lines({"prompt": "a", "label": 1}))

    def on(name: str) -> dict[str, Any]:
        return {"data": {"datasets": [{"name": name}]}}

    assert "did you mean rollout.group_size" in await message(client, 422, run_tree(rollout={"groupsize": 1}))
    assert "did you mean sums" in await message(client, 422, run_tree(**on("sum")))
    assert "eval.datasets: there is no" in await message(client, 422, run_tree(eval={"datasets": ["x"]}))
    assert "2 times" in await message(client, 422, run_tree(data={"datasets": [{"name": "sums"}] * 2}))
    assert "every weight is 0" in await message(
        client, 422, run_tree(data={"datasets": [{"name": "sums", "weight": 0}]})
    )
    assert "rows without a label" in await message(client, 422, run_tree(**on("bare")))
    assert "whose label is no text" in await message(client, 422, written_run_tree("sft", **on("numbers")))
    assert "without a pair of answers" in await message(client, 422, written_run_tree("dpo", **on("sums")))
    assert "model.path" in await message(client, 422, run_tree(model={"path": str(tmp_path / "gone")}))
    assert await Runs(redis).list() == []
    remote = {"type": "remote", "url": "http://127.0.0.1:1"}
    assert (await client.post("/v1/runs", json=run_tree(**on("bare"), reward=remote))).status_code == 201
    assert "exists" in await message(client, 409, run_tree())


async def test_runs_whose_answers_are_in_their_rows_start_with_conversations_and_pairs(
    client: httpx.AsyncClient, store: DatasetStore
) -> None:
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    await add(store, "chats", lines({"prompt": turns}))
    await add(store, "pairs", pairs(3))
    for kind, dataset in (("sft", "chats"), ("dpo", "pairs")):
        tree = written_run_tree(kind, name=kind, data={"datasets": [{"name": dataset}]})
        assert (await client.post("/v1/runs", json=tree)).status_code == 201


async def test_an_evaluation_is_created_without_a_dataset_to_train_on(
    client: httpx.AsyncClient, store: DatasetStore
) -> None:
    await add(store, "held", sums(3))
    whole = run_tree(trainer={"steps": 0}, eval={"datasets": ["held"]})
    bare = {name: value for name, value in whole.items() if name != "data"}
    for tree in (whole, {**bare, "name": "bare"}):
        answer = await client.post("/v1/runs", json=tree)
        assert (answer.status_code, answer.json()["steps"]) == (201, 0)
    assert "in use by run r1, bare" in (await client.delete("/v1/datasets/held")).text


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b"\xff", "application/toml", 422),
        (b"a = ", "application/toml", 422),
        (b"a: 1", "application/yaml", 415),
        (b" " * (2**20 + 1), "application/json", 413),
    ],
)
async def test_a_body_that_is_no_run_file_is_refused(
    client: httpx.AsyncClient, content: bytes, media_type: str, status: int
) -> None:
    answer = await client.post("/v1/runs", content=content, headers={"content-type": media_type})
    assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True)


@pytest.mark.parametrize("path", ["\ud800", "/" + "a" * 5000, "/a\0b"])
async def test_a_model_path_that_no_file_can_have_is_refused(
    client: httpx.AsyncClient, store: DatasetStore, path: str
) -> None:
    await add(store, "sums", sums(3))
    tree = {**run_tree(), "model": {"path": path}}
    answer = await client.post("/v1/runs", content=json.dumps(tree), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "write" in answer.json()["error"]["message"]


async def test_a_stop_ends_a_queued_run_at_once_and_asks_a_served_one(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis
) -> None:
    await add(store, "sums", sums(3))
    runs = Runs(redis)
    for name in ("r1", "r2"):
        await runs.create(run_settings(name))
    await runs.activate_next()
    assert (await client.post("/v1/runs/r2/stop")).json()["state"] == "stopped"
    assert await redis.lrange(QUEUE, 0, -1) == []
    for _ in range(2):
        assert (await client.post("/v1/runs/r1/stop")).json()["state"] == "stopping"
    await runs.move("r1", ("stopping",), "stopped")
    assert (await client.post("/v1/runs/r1/stop")).json()["state"] == "stopped"
    await runs.create(run_settings("r3"))
    await runs.fail("r3", "trainer: out of memory")
    answer = await client.post("/v1/runs/r3/stop")
    assert (answer.status_code, "has failed already" in answer.json()["error"]["message"]) == (409, True)
    gone = await client.post("/v1/runs/r9/stop")
    assert (gone.status_code, gone.json()["error"]["message"]) == (404, "there is no run 'r9'; did you mean r3?")


async def test_steps_are_paged_from_any_step_and_the_last_metrics_are_those_of_the_last_commit(
    client: httpx.AsyncClient, redis: Redis
) -> None:
    await Runs(redis).create(run_settings())
    ledger = Ledger(redis, KEYS)
    epoch = await ledger.take_over()
    for step in range(1, 451):
        await ledger.intend(epoch, StepIntent(step, [step], step - 1, 0), [])
        await ledger.commit(epoch, StepCommit(step, step, {"loss": float(step)}), [step], 10)
    await ledger.intend(epoch, StepIntent(451, [451], 450, 0), [])

    async def numbers(query: str) -> list[int]:
        answer = await client.get(f"/v1/runs/r1/steps?{query}")
        return [step["step"] for step in answer.json()["steps"]]

    assert await numbers("") == list(range(1, 451))
    assert await numbers("limit=3") == [1, 2, 3]
    assert await numbers("after=100&limit=3") == [101, 102, 103]
    assert await numbers("after=448") == [449, 450]
    assert await numbers("after=450") == []
    run = (await client.get("/v1/runs/r1")).json()
    assert (run["step"], run["metrics"], run["counters"]["trained_tokens"]) == (450, {"loss": 450.0}, 4500)


async def test_samples_are_those_still_kept_newest_groups_first(client: httpx.AsyncClient, redis: Redis) -> None:
    await Runs(redis).create(run_settings())
    await announce_all(redis)
    ledger = Ledger(redis, KEYS)
    for group_id in (3, 900):
        for attempt in (1, 0):
            await ledger.join([complete(rollout(group_id, attempt))])
    await redis.hset(KEYS.counters, "next_group_id", 1000)
    found = (await client.get("/v1/runs/r1/samples?limit=3")).json()["samples"]
    assert [(one["group_id"], one["attempt"]) for one in found] == [(900, 0), (900, 1), (3, 0)]
    assert (found[0]["prompt_tokens"], found[0]["response_tokens"], found[0]["reward"]) == (2, 3, 0.5)
    assert found[0]["weight_versions"] == [[4, 2], [5, 1]]
    one = (await client.get("/v1/runs/r1/samples?group_id=3")).json()["samples"]
    assert [s["attempt"] for s in one] == [0, 1]
    assert (await client.get("/v1/runs/r1/samples?group_id=5")).json() == {"samples": []}


def rollout(group_id: int, attempt: int) -> Rollout:
    return Rollout(
        group_id=group_id,
        attempt=attempt,
        group_size=2,
        kind="train",
        dataset="sums",
        row=1,
        prompt="1+1=",
        label="2",
        metadata={},
        prompt_ids=np.array([1, 2], np.int32),
        token_ids=np.array([3, 4, 5], np.int32),
        logprobs=np.zeros(3, np.float32),
        loss_mask=[(1, 3)],
        weight_versions=[(4, 2), (5, 1)],
        finish_reason="stop",
        text="2",
        worker="w0",
        seconds=0.1,
        reward=0.5,
    )


async def test_samples_of_evaluations_can_be_left_out_or_wanted_alone(client: httpx.AsyncClient, redis: Redis) -> None:
    run = await PlayedRun.open(redis)
    await run.everywhere()

    async def kinds(query: str) -> list[str]:
        found = (await client.get(f"/v1/runs/r1/samples?limit=4{query}")).json()["samples"]
        return [one["kind"] for one in found]

    assert await kinds("") == ["train", "eval", "eval", "eval"]
    assert await kinds("&evaluations=false") == ["train"] * 4
    assert await kinds("&evaluations=true") == ["eval"] * 4


async def test_status_names_the_active_run_its_services_and_a_router_that_is_down(
    client: httpx.AsyncClient, redis: Redis
) -> None:
    await Runs(redis).create(run_settings())
    await redis.set(ACTIVE, "r1")
    await announce_all(redis)
    status = (await client.get("/v1/status")).json()
    assert status["active_run"] == "r1"
    assert status["services"] == ["engine/e0", "reward/r0", "rollout/w0", "trainer/trainer"]
    assert status["router"] == {"reachable": False, "workers": 0}
    assert status["redis"]["used_memory"] > 0


async def test_everything_but_health_and_the_documentation_needs_the_key(client: httpx.AsyncClient) -> None:
    paths: dict[str, dict[str, Any]] = (await client.get("/openapi.json")).json()["paths"]
    for key in ("", "Bearer wrong", "Bearer kéy", "Basic the-key"):
        client.headers = httpx.Headers([(b"Authorization", key.encode())] if key else [])
        for path, methods in paths.items():
            for method in methods:
                answer = await client.request(method, path.replace("{", "").replace("}", ""))
                wanted = 200 if path == "/healthz" else 401
                assert (path, answer.status_code) == (path, wanted)
    assert answer.json()["error"]["message"].startswith("the API key is")


async def test_unknown_paths_and_methods_answer_in_the_same_shape(client: httpx.AsyncClient) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("PUT", "/v1/runs", 405)):
        answer = await client.request(method, path)
        assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "details"})

"""What a run asserts of its steps, through the loop on a real Redis: first step, gradients, alarm, ledger."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redis.asyncio import Redis
from transformers import AutoModelForCausalLM

from services.trainer.backends.torch_backend import TorchBackend
from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.first_step import FirstStep, first_step_problems
from shared.errors import RunRejected
from shared.messages import Event, Rollout, StepCommit, StepIntent
from shared.scripts import Ledger
from shared.streams import Stream
from shared.topology import EVENTS
from tests.services.trainer.bench import KEYS, Bench, Killed, kill_at
from tests.services.trainer.recorded_groups import feed, small_model

CHECKED: dict[str, Any] = {"check_first_step": True}


def as_engine(tmp_path: Path, off: float = 0.0) -> Callable[[Rollout], Rollout]:
    """Attempts with the log-probabilities of the run's initial model, `off` nats beside them."""
    model = AutoModelForCausalLM.from_pretrained(small_model(tmp_path / "model")).eval()

    def sampled(rollout: Rollout) -> Rollout:
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.token_ids]).astype(np.int64))
        with torch.no_grad():
            every = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
        own = every.gather(1, ids[1:, None])[-len(rollout.token_ids) :, 0]
        return replace(rollout, logprobs=(own + off).numpy().astype(np.float32))

    return sampled


async def events(redis: Redis, name: str) -> list[dict[str, Any]]:
    return [e.detail for _, e in await Stream[Event](redis, "r1", EVENTS).read() if e.event == name]


def commits(records: list[Any]) -> list[StepCommit]:
    return [one for one in records if isinstance(one, StepCommit)]


def gradients_are_not_finite(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """As an overflow would have it: the loss of some steps, told by their seeds, is multiplied by infinity."""
    original = TorchBackend.train_step

    def overflows(self: Any, packs: Any, loss: Any, rate: Any, seed: int) -> Any:
        def beyond(*args: Any) -> Any:
            found = loss(*args)
            return replace(found, loss=found.loss * float("inf"))

        return original(self, packs, beyond if seed in steps else loss, rate, seed)

    monkeypatch.setattr(TorchBackend, "train_step", overflows)


@pytest.mark.parametrize("trainer", [
    {}, {"updates_per_step": 3, "epochs": 2}, {"loss": {"old_policy": "proximal"}, "epochs": 2},
    {"kl": {"measure": True}, "epochs": 2},
], ids=["one update", "several", "proximal", "reference"])  # fmt: skip
async def test_a_run_whose_models_agree_passes_its_first_step(
    redis: Redis, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    bench = Bench(redis, tmp_path, trainer={**CHECKED, "steps": 1, "learning_rate": 1e-2, **trainer})
    await feed(redis, "r1", range(3), change=as_engine(tmp_path))
    await bench.train()
    assert await bench.state() == "finished"
    metrics = commits(await bench.records())[0].metrics
    if trainer.get("epochs"):
        assert metrics["first_update_ratio_deviation_max"] < 1e-3 < metrics["ratio_deviation_max"]
    if not trainer.get("updates_per_step"):  # else updates of unlike lengths weigh alike in one and not in the other
        assert metrics["logprob_diff_staleness_0"] == pytest.approx(metrics["logprob_diff_mean_abs"])


async def test_a_preference_run_passes_its_first_step(redis: Redis, tmp_path: Path) -> None:
    settings = {"steps": 1, "epochs": 3, "learning_rate": 1e-2, **CHECKED}
    bench = Bench(redis, tmp_path, kind="dpo", trainer=settings)
    await feed(redis, "r1", range(3), "dpo")
    await bench.train()
    metrics = commits(await bench.records())[0].metrics
    assert abs(metrics["first_update_chosen_reward"]) < 1e-5 < abs(metrics["chosen_reward"])


async def test_an_engine_that_computes_another_model_ends_the_run_and_leaves_a_recorded_step(
    redis: Redis, tmp_path: Path
) -> None:
    bench = Bench(redis, tmp_path, trainer=CHECKED)
    await feed(redis, "r1", range(12), change=as_engine(tmp_path, off=0.2))
    with pytest.raises(RunRejected, match=r"on step 1, .* differ by 0\.2 nats .*; .*sluice branch r1 --from 0"):
        await bench.train()
    records, counters = await bench.records(), await Ledger(redis, KEYS).counters()
    assert [type(one) for one in records] == [StepIntent]
    assert (counters["intended"], counters.get("step", 0), counters["weight_version"]) == (1, 0, 0)
    with pytest.raises(RunRejected, match="on step 1"):  # the same sentence from a trainer that takes it up
        await bench.train()
    assert await bench.records() == records
    bench.settings = bench.settings.model_copy(
        update={"trainer": bench.settings.trainer.model_copy(update={"check_first_step": False})}
    )
    await redis.hset(KEYS.record, "settings", bench.settings.model_dump_json())
    await bench.train()
    after = await bench.records()
    assert after[0] == records[0]
    assert [one.step for one in commits(after)] == [1, 2, 3, 4]


async def test_a_reference_that_is_not_the_initial_model_any_more_ends_the_run(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.trainer.frozen_model import FrozenModel

    predict = FrozenModel.predict
    monkeypatch.setattr(
        FrozenModel, "predict", lambda s, p: [replace(said, logprobs=said.logprobs - 0.1) for said in predict(s, p)]
    )
    bench = Bench(redis, tmp_path, trainer={**CHECKED, "kl": {"measure": True, "estimator": "k1"}})
    await feed(redis, "r1", range(3), change=as_engine(tmp_path))
    with pytest.raises(RunRejected, match=r"0\.1 nats a token away from the reference"):
        await bench.train()


async def test_one_token_with_another_probability_ends_the_run(redis: Redis, tmp_path: Path) -> None:
    right = as_engine(tmp_path)

    def one_wrong(rollout: Rollout) -> Rollout:
        found, wrong = right(rollout), np.zeros(len(rollout.token_ids), np.float32)
        wrong[0] = 0.02 * (rollout.group_id == 1 and rollout.attempt == 2)
        return replace(found, logprobs=found.logprobs + wrong)

    bench = Bench(redis, tmp_path, trainer=CHECKED)
    await feed(redis, "r1", range(3), change=one_wrong)
    with pytest.raises(RunRejected, match=r"ratio to the behaviour policy is 0\.0198 away from 1"):
        await bench.train()


async def test_skipped_steps_are_counted_once_though_the_trainer_dies(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients_are_not_finite(monkeypatch, 2, 3)
    kill_at(monkeypatch, CheckpointWriter, "begin", call=2)
    bench = Bench(redis, tmp_path, trainer={"steps": 5})
    await feed(redis, "r1", range(15))
    with pytest.raises(Killed):
        await bench.train()
    await bench.train()  # from the checkpoint of step 2: steps 3 and 4 again
    found = commits(await bench.records())
    assert [one.metrics["step_skipped"] for one in found] == [0, 1, 1, 0, 0]
    assert [one.metrics["steps_skipped"] for one in found] == [0, 1, 2, 2, 2]
    assert [detail["step"] for detail in await events(redis, "step_skipped")] == [2, 3]
    published = {version: weights for noted in bench.noted for version, weights in noted.published.items()}
    assert all(torch.equal(published[1][name], published[3][name]) for name in published[1])
    assert any(not torch.equal(published[3][name], published[4][name]) for name in published[3])


async def test_a_gradient_that_is_not_finite_stops_the_run_where_it_is_told_to(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients_are_not_finite(monkeypatch, 3)
    bench = Bench(redis, tmp_path, trainer={"nan_policy": "stop"})
    await feed(redis, "r1", range(12))
    with pytest.raises(RunRejected, match=r"gradient of step 3 is not finite.*sluice branch r1 --from 2"):
        await bench.train()
    records = await bench.records()
    assert [one.step for one in records if isinstance(one, StepIntent)] == [1, 2, 3]
    assert [one.step for one in commits(records)] == [1, 2]
    assert (await Ledger(redis, KEYS).counters())["step"] == 2


async def test_an_alarm_is_one_event_and_names_the_difference_by_staleness(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, CheckpointWriter, "begin", call=2)
    bench = Bench(redis, tmp_path, trainer={"logprob_diff_alarm": 0.05}, rollout={"max_staleness": 4})
    await feed(redis, "r1", range(6), change=as_engine(tmp_path))
    await feed(redis, "r1", range(6, 12), change=as_engine(tmp_path, off=0.3))
    with pytest.raises(Killed):
        await bench.train()
    await bench.train()
    found = commits(await bench.records())
    assert [[n for n in one.metrics if n.startswith("logprob_diff_staleness")] for one in found] == [
        [f"logprob_diff_staleness_{step}"] for step in range(4)
    ]
    told = await events(redis, "logprob_diff_alarm")
    assert [detail["step"] for detail in told] == [3, 4]
    assert told[0]["logprob_diff_staleness_2"] == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("is_quantised", "off", "said"), [(False, 0.08, 0), (False, 0.2, 1), (True, 0.2, 0), (True, 0.4, 1)]
)
def test_an_engine_in_fp8_may_be_farther_off_at_the_first_step(is_quantised: bool, off: float, said: int) -> None:
    first = FirstStep(1, "bfloat16", is_quantised, is_reference=False, old_policy="behaviour", beta=0.1)
    assert len(list(first_step_problems(first, {"logprob_diff_mean_abs": off}))) == said

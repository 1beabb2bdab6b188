"""Runs of which adapters alone learn, through real streams: killed, replayed, branched, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from redis.asyncio import Redis
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from services.trainer.backends.adapt_layers import shape_of
from services.trainer.backends.adapter_files import ADAPTER_CONFIG, ADAPTER_TENSORS
from services.trainer.checkpoint import Checkpoints
from services.trainer.loop import TrainingLoop
from services.trainer.open_learner import open_learner
from services.trainer.stage_weights import Stage
from services.trainer.version_writer import RunFiles, VersionWriter
from shared.errors import RunRejected
from shared.settings import merge
from shared.weight_store import WeightStore
from tests.services.trainer.bench import Bench, Killed, kill_at, outcome
from tests.services.trainer.recorded_groups import feed, run_settings, small_model
from tests.services.trainer.test_branch import Branches, equal, record_of
from tests.services.trainer.test_replay import recorded, replayed

ADAPTERS = {"rank": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]}
FILES = {"transport": "disk"}
KL = {"kl": {"loss_coef": 0.1}}


async def trained(redis: Redis, home: Path, **sections: Any) -> Bench:
    bench = Bench(redis, home, **merge({"lora": ADAPTERS}, sections))
    await feed(redis, "r1", range(12), bench.settings.kind)
    await bench.train()
    return bench


async def test_a_run_publishes_merged_models_and_keeps_adapters_with_the_name_of_their_base(
    redis: Redis, tmp_path: Path
) -> None:
    bench = await trained(redis, tmp_path, trainer=KL)
    assert await bench.state() == "finished"
    before, published = load_file(tmp_path / "model" / "model.safetensors"), bench.noted[0].published
    assert equal(published[0], before)
    assert published[4].keys() == before.keys()
    assert not torch.equal(
        published[4]["model.layers.0.mlp.down_proj.weight"], before["model.layers.0.mlp.down_proj.weight"]
    )
    manifest = json.loads((bench.folder / "checkpoints" / "step_000004" / "manifest.json").read_text())
    assert manifest["base"]["path"] == str(tmp_path / "model")
    size = sum(path.stat().st_size for path in (bench.folder / "checkpoints" / "step_000004").iterdir())
    assert size < (tmp_path / "model" / "model.safetensors").stat().st_size
    written = {path.name for path in (bench.folder / "export" / "adapter").iterdir()}
    assert written == {ADAPTER_CONFIG, ADAPTER_TENSORS}


@pytest.mark.parametrize("kind", ["rl", "dpo"])
async def test_a_killed_trainer_ends_with_the_adapters_that_it_would_have_had(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sections: dict[str, Any] = {"kind": kind, "trainer": KL if kind == "rl" else {}}
    expected = await outcome(await trained(redis, tmp_path / "unharmed", **sections))
    await redis.flushdb()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, TrainingLoop, "_keep", call=3)
        await trained(redis, tmp_path / "killed", **sections)
    bench = Bench(redis, tmp_path / "killed", lora=ADAPTERS, **sections)
    await bench.train()
    (await outcome(bench)).must_equal(expected)


async def test_steps_are_replayed_and_branched_from_with_the_same_bits(redis: Redis, tmp_path: Path) -> None:
    parent = await recorded(redis, tmp_path, lora=ADAPTERS)
    assert [step.equal for step in await replayed(redis, tmp_path, 3, None)] == [True] * 2
    branches = Branches(redis, tmp_path)
    record = await branches.begin(parent, "b1", 2)
    await branches.train(record, range(6, 12))
    assert equal(branches.weights(record, 4), branches.weights(await record_of(redis, "r1"), 4))


async def test_a_branch_with_other_adapters_is_refused(redis: Redis, tmp_path: Path) -> None:
    parent = await recorded(redis, tmp_path, lora=ADAPTERS)
    branches = Branches(redis, tmp_path)
    record = await branches.begin(parent, "b1", 2, {"lora": {"alpha": 8.0}})
    with pytest.raises(RunRejected, match=r"run b1 and its parent r1 differ in \[lora\]"):
        await branches.train(record, range(6, 12))


async def test_adapters_do_not_go_on_beside_another_model(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, Checkpoints, "finish", call=1, after=True)
        await trained(redis, tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"] += 1.0
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(RunRejected, match=r"holds adapters of the model that was in .*/model, and .* holds another"):
        await Bench(redis, tmp_path, lora=ADAPTERS).train()


async def test_a_run_whose_engines_serve_adapters_publishes_nothing_else(redis: Redis, tmp_path: Path) -> None:
    bench = await trained(redis, tmp_path, lora={"publish": "adapter"}, weights=FILES)
    published, exported = bench.noted[0].published, load_file(bench.folder / "export" / "adapter" / ADAPTER_TENSORS)
    assert equal(published[4], exported)
    assert {float(tensor.abs().max()) for name, tensor in published[0].items() if ".lora_B." in name} == {0.0}


def test_a_version_of_adapters_is_a_folder_of_the_peft_library(tmp_path: Path) -> None:
    settings = run_settings(small_model(tmp_path / "model"), lora={**ADAPTERS, "publish": "adapter"}, weights=FILES)
    learner, stage = open_learner(settings, torch.device("cpu")), Stage(2**30)
    about = RunFiles("r1", "owner", 1, Path(settings.model.path), "float32", shape_of(settings.lora))
    staged = stage.stage(0, 0, learner.named_tensors())
    files = VersionWriter(WeightStore(str(tmp_path / "store")), about, None).write(staged, "checksum")
    folder = tmp_path / "store" / files.folder
    assert equal(load_file(folder / ADAPTER_TENSORS), dict(learner.named_tensors()))
    base = AutoModelForCausalLM.from_pretrained(settings.model.path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, folder).state_dict()
    assert [name for name in loaded if ".lora_A." in name] == [
        f"base_model.model.model.layers.0.{layer}.lora_A.default.weight"
        for layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    ]

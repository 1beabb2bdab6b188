"""Settings of adapters that do not go together with those of their run, each refused with what to write instead."""

from typing import Any

import pytest
from pydantic import ValidationError

from shared.run_settings import RunSettings
from shared.settings import merge

RUN: dict[str, Any] = {
    "name": "r1",
    "model": {"path": "m"},
    "data": {"datasets": [{"name": "sums"}]},
    "trainer": {"steps": 4},
}
SERVED, FILES = {"rank": 8, "publish": "adapter"}, {"transport": "disk"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "adapters of no rank": ({"lora": {"alpha": 8}}, r"lora\.alpha has no effect with lora\.rank = 0; write rank = 16"),
    "adapters of no layer": (
        {"lora": {"rank": 8, "target_modules": []}},
        r"target_modules is empty, so nothing learns",
    ),
    "a reference that moves": (
        {"lora": {"rank": 8}, "trainer": {"kl": {"loss_coef": 0.1, "refresh_every": 2}}},
        r"refresh_every makes the reference a copy of the policy, and with lora\.rank it is the policy without",
    ),
    "a reference in the host's memory": (
        {"lora": {"rank": 8}, "trainer": {"kl": {"loss_coef": 0.1}, "offload_frozen": True}},
        r"offload_frozen has no effect: with lora\.rank the reference is the policy",
    ),
    "adapters in a broadcast": (
        {"lora": SERVED},
        r'transport "broadcast" carries whole models; write weights\.transport = "disk"',
    ),
    "adapters as deltas": (
        {"lora": SERVED, "weights": {"transport": "delta"}},
        r'transport "delta" carries whole models',
    ),
    "requests that wait for adapters": (
        {"lora": SERVED, "weights": FILES, "engine": {"update_mode": "abort"}},
        r"update_mode is 'abort', and no request waits for an adapter",
    ),
    "adapters of parts of what engines keep as one": (
        {"lora": {**SERVED, "target_modules": ["q_proj", "v_proj"]}, "weights": FILES},
        r"has q_proj, v_proj, and engines keep q_proj, k_proj, v_proj as one layer",
    ),
    "adapters beside a model in fp8": (
        {"lora": SERVED, "weights": {**FILES, "quantization": "fp8"}, "model": {"dtype": "bfloat16"}},
        r'quantization is "fp8", and engines keep the model that adapters are for as it is',
    ),
    "adapters in pieces": ({"lora": SERVED, "weights": {**FILES, "bucket_mib": 64}}, r"bucket_mib has no effect"),
    "adapters beside no model": (
        {"lora": SERVED, "weights": FILES, "engine": {"server_args": {"load_format": "dummy"}}},
        r"load_format is 'dummy', and engines that get adapters alone get the model from model\.path",
    ),
    "two adapters of a layer": (
        {"lora": {"rank": 8, "target_modules": ["q_proj", "o_proj", "q_proj"]}},
        r"names a layer twice: q_proj, o_proj, q_proj; name each once",
    ),
    "adapters for no engine": ({"kind": "sft", "lora": SERVED}, r"lora\.publish has no effect in a run of kind 'sft'"),
}


def run(sections: dict[str, Any]) -> RunSettings:
    return RunSettings.model_validate(merge(RUN, sections))


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_with_what_to_write(case: str) -> None:
    sections, sentence = REFUSED[case]
    with pytest.raises(ValidationError, match=sentence):
        run(sections)


@pytest.mark.parametrize("kind", ["rl", "sft", "dpo"])
def test_every_kind_of_run_may_have_adapters(kind: str) -> None:
    assert run({"kind": kind, "lora": {"rank": 8}}).lora.alpha == 32


def test_another_reference_may_be_kept_in_the_host_s_memory() -> None:
    kl = {"loss_coef": 0.1, "reference": "other"}
    assert run({"lora": {"rank": 8}, "trainer": {"kl": kl, "offload_frozen": True}}).lora.rank == 8


def test_adapters_alone_travel_in_files() -> None:
    assert run({"lora": SERVED, "weights": FILES}).lora.is_served
    assert not run({"lora": {"rank": 8}}).lora.is_served

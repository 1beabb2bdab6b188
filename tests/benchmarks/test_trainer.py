"""The trainer's benchmark at a tiny size: every case trains the same tokens to the same loss, and counts them right."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks.trainer import CASES, Result, cases_of, measure, table
from benchmarks.trainer_shapes import MICRO_BATCHES, SHAPES, Kind, lengths_of, write_model

TINY = SHAPES["tiny"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write_model(TINY, made, CPU)
    return made


@pytest.mark.parametrize("kind", ["2k", "16k", "mixed"])
def test_every_case_of_a_row_trains_the_same_tokens_to_the_same_loss(kind: Kind, folder: Path) -> None:
    results = [measure(kind, case, TINY, folder, CPU, steps=1) for case in cases_of(kind, False, None)]
    assert len(results) >= 2
    assert len({(result.samples, result.tokens, result.tflops) for result in results}) == 1
    assert results[0].tokens == MICRO_BATCHES * TINY.budget
    for result in results:
        assert result.loss == pytest.approx(results[0].loss, abs=2e-4)
        assert result.peak_gib is None
        assert set(result.speeds()) == {"tokens_s", "mfu_989", "mfu_800"}
    assert len(table(results).splitlines()) == 2 + len(results)


def test_lengths_are_those_that_the_row_is_called_after() -> None:
    shape = SHAPES["0.6b"]
    assert lengths_of("2k", shape) == [2048] * 32
    assert lengths_of("16k", shape) == [16384] * 4
    mixed = lengths_of("mixed", shape)
    assert sum(mixed) == 65536
    assert max(mixed) > 4096
    assert min(mixed) < 512


def test_flops_are_those_of_the_products_that_a_pass_makes(folder: Path) -> None:
    """Attention is compared by itself: this one computes all pairs, and twice as many as causality leaves."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with FlopCounterMode(display=False) as counted:
        model(input_ids=torch.arange(64)[None], use_cache=False).logits.sum().backward()
    products = counted.get_flop_counts()["Global"]
    attention = products[torch.ops.aten.bmm]
    assert sum(products.values()) - attention == 6 * TINY.matrices() * 64
    assert TINY.flops().of([64]) - 6 * TINY.matrices() * 64 == pytest.approx(attention / 2, rel=0.02)


def test_the_0_6b_shape_has_as_many_parameters_as_its_name_says() -> None:
    shape = SHAPES["0.6b"]
    assert 0.59e9 < shape.matrices() < 0.6e9


def test_a_case_that_runs_out_of_memory_is_told_as_such() -> None:
    result = Result("16k", "transformers", 4, 65536, 604.0)
    assert "| 16k | transformers | out of memory |" in table([result])
    assert result.speeds() == {}


def test_cases_run_only_when_they_are_asked_for() -> None:
    assert [case.name for case in cases_of("16k", True, None)] == [case.name for case in CASES["16k"]]
    assert not any(case.is_compiled for case in cases_of("16k", False, None))
    assert [case.name for case in cases_of("16k", False, "recomputed")] == [
        "product, recomputed",
        "transformers, recomputed",
    ]
    assert [case.name for case in cases_of("16k", True, "product, compiled")] == ["product, compiled"]
    assert len(cases_of("16k", True, "compiled")) == 2

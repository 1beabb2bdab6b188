"""Buckets hold exactly the parameters' bytes."""

import pytest
import torch

from services.trainer.weight_buckets import WeightBuckets, plan_buckets

CPU = torch.device("cpu")


def test_buckets_are_filled_up_to_the_limit_and_a_larger_tensor_has_its_own() -> None:
    tensors = [("a", torch.zeros(10)), ("b", torch.zeros(10)), ("c", torch.zeros(100)), ("d", torch.zeros(5))]
    names = [[spec.name for spec in bucket] for bucket in plan_buckets(tensors, limit_bytes=100)]
    assert names == [["a", "b"], ["c"], ["d"]]


def test_wide_types_come_first_so_that_every_tensor_is_aligned() -> None:
    tensors = [
        ("half", torch.zeros(3, dtype=torch.bfloat16)),
        ("full", torch.zeros(3)),
        ("byte", torch.zeros(1).byte()),
    ]
    (bucket,) = plan_buckets(tensors, limit_bytes=1000)
    assert [(spec.name, spec.dtype) for spec in bucket] == [
        ("full", "float32"),
        ("half", "bfloat16"),
        ("byte", "uint8"),
    ]


def test_the_flat_bytes_are_the_tensors_one_after_the_other() -> None:
    tensors = [("a", torch.randn(3, 5)), ("b", torch.randn(7).bfloat16()), ("c", torch.tensor(2.5))]
    buckets = WeightBuckets(plan_buckets(tensors, 10_000), CPU)
    buckets.copy_from(tensors)
    expected = torch.cat([t.reshape(-1).view(torch.uint8) for _, t in (tensors[0], tensors[2], tensors[1])])
    assert torch.equal(buckets.flat[0], expected)
    assert buckets.nbytes == expected.numel()


def test_a_transposed_parameter_is_staged_in_its_logical_order() -> None:
    tensor = torch.randn(4, 6).t()
    buckets = WeightBuckets(plan_buckets([("a", tensor)], 1000), CPU)
    buckets.copy_from([("a", tensor)])
    assert torch.equal(buckets.tensors["a"], tensor)


def test_a_tensor_that_is_not_given_is_an_error() -> None:
    tensors = [("a", torch.zeros(1)), ("b", torch.zeros(1))]
    buckets = WeightBuckets(plan_buckets(tensors, 1000), CPU)
    with pytest.raises(ValueError, match="such as b"):
        buckets.copy_from(tensors[:1])

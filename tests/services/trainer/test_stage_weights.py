"""A stage never changes what is being published; on a GPU it takes the memory that is there, and training goes on."""

import pytest
import torch

from services.trainer import stage_weights
from services.trainer.stage_weights import Stage, fits_on_device
from services.trainer.weight_buckets import WeightBuckets, plan_buckets

GIB = 2**30
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def test_the_stage_reuses_two_copies_and_never_the_published_one() -> None:
    stage = Stage(limit_bytes=1000)
    first = stage.stage(0, 0, [("a", torch.full((4,), 0.0))])
    assert stage.publish(first)
    second = stage.stage(1, 1, [("a", torch.full((4,), 1.0))])
    third = stage.stage(2, 2, [("a", torch.full((4,), 2.0))])
    assert second.replaced
    assert third.buckets is second.buckets
    assert first.buckets.tensors["a"][0] == 0.0
    assert stage.publish(third)
    assert stage.stage(3, 3, [("a", torch.full((4,), 3.0))]).buckets is first.buckets


def test_a_replaced_snapshot_is_not_published_and_the_one_before_it_is_kept() -> None:
    stage = Stage(limit_bytes=1000)
    published = stage.stage(0, 0, [("a", torch.zeros(4))])
    assert stage.publish(published)
    old = stage.stage(1, 1, [("a", torch.ones(4))])
    stage.stage(2, 2, [("a", torch.ones(4))])
    assert not stage.publish(old)
    assert stage.stage(3, 3, [("a", torch.ones(4))]).buckets is not published.buckets


def test_copies_go_to_the_gpu_where_they_leave_most_of_its_free_memory() -> None:
    assert fits_on_device(16 * GIB, 120 * GIB)
    assert not fits_on_device(16 * GIB, 60 * GIB)


@pytest.mark.parametrize(("free", "on_host"), [(60 * GIB, False), (2**20, True)])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_the_memory_that_is_free_decides_where_the_copies_are(
    monkeypatch: pytest.MonkeyPatch, device: str, free: int, on_host: bool
) -> None:
    monkeypatch.setattr(stage_weights, "_free_memory", lambda _: free)
    named = [("a", torch.zeros(2**20, device=device))]
    buckets = Stage(2**20).stage(0, 0, named).buckets
    assert buckets.is_on_host == on_host
    assert buckets.flat[0].is_pinned() == on_host
    assert Stage(2**20, "device").stage(0, 0, named).buckets.is_on_host is False
    assert Stage(2**20, "host").stage(0, 0, named).buckets.is_on_host is True


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_what_training_queues_after_a_snapshot_does_not_change_it_and_nothing_waits(device: str, place: str) -> None:
    weight = torch.randn(4096, 4096, device=device)
    expected, stage = weight.cpu(), Stage(2**20, place)
    stage.stage(0, 0, [("w", weight.mul_(1))])  # a kernel's first call waits for the device
    torch.cuda.synchronize()
    torch.cuda._sleep(400_000_000)  # a step that is under way, of a fifth of a second or so
    queued = torch.cuda.Event()
    staged = stage.stage(1, 1, [("w", weight)])
    weight.mul_(2)
    queued.record()
    assert not queued.query(), "staging waited for the step"
    staged.buckets.wait_copied()
    assert torch.equal(staged.buckets.tensors["w"].cpu(), expected)


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_buckets_reach_the_wire_as_they_are_through_buffers_too(device: str, place: str) -> None:
    named = [(f"w{index}", torch.randn(1000 + 77 * index, 1000, device=device)) for index in range(7)]
    buckets = WeightBuckets(plan_buckets(named, 8_000_000), torch.device(device), place == "host")
    assert len(buckets.flat) > 3
    buckets.copy_from(named)
    buckets.wait_copied()
    sent = [torch.empty(flat.numel(), dtype=torch.uint8, pin_memory=True) for flat in buckets.flat]
    for copy, bucket in zip(sent, buckets.to_send(), strict=True):
        torch.cuda._sleep(20_000_000)  # a slow broadcast, which nobody waits for
        for part, tensor in zip(copy.split([tensor.nbytes for tensor in bucket]), bucket, strict=True):
            part.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
    torch.cuda.synchronize()
    assert all(torch.equal(one, other.cpu()) for one, other in zip(sent, buckets.flat, strict=True))

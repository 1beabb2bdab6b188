"""Named parameters -> flat buckets to broadcast, and their manifest."""

from collections.abc import Iterable, Iterator

import torch

from shared.messages import TensorSpec


class WeightBuckets:
    """One staged copy of the weights. Each bucket is one flat tensor of bytes; the layout never changes."""

    def __init__(self, layout: list[list[TensorSpec]], device: torch.device, on_host: bool = False) -> None:
        """`device` is where the parameters are, and where a broadcast begins; `on_host` keeps the copy beside a GPU."""
        self.layout, self.device = layout, device
        self.is_on_host = on_host and device.type == "cuda"
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        memory = torch.device("cpu") if on_host else device
        self.flat: list[torch.Tensor] = []
        self.tensors: dict[str, torch.Tensor] = {}
        """Views into the buckets, by name, in the order of the layout."""
        for bucket in layout:
            flat = torch.empty(sum(map(_bytes, bucket)), dtype=torch.uint8, device=memory, pin_memory=self.is_on_host)
            self.flat.append(flat)
            self.tensors.update(zip((spec.name for spec in bucket), _views(flat, bucket), strict=True))

    @torch.no_grad()
    def copy_from(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite every tensor; when it returns, the sources may change, by what is queued on the same GPU stream.

        Raises:
            KeyError: a tensor is not in the layout.
            ValueError: a tensor of the layout was not given.
        """
        missing = set(self.tensors)
        for name, tensor in named_tensors:
            self.tensors[name].copy_(tensor, non_blocking=True)
            missing.discard(name)
        if missing:
            raise ValueError(f"{len(missing)} tensors were not given to be staged, such as {min(missing)}")
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self.device))

    def wait_copied(self) -> None:
        """Block until everything is there."""
        if self._copied is not None:
            self._copied.synchronize()

    def to_send(self) -> Iterator[list[torch.Tensor]]:
        """The buckets in order, each as what is broadcast of it: all at once on a CPU, tensor by tensor on a GPU.

        There SGLang receives tensors where it needs no second copy of the bucket. Each bucket is to be sent by the
        current stream before the next is asked for. Those that lie on the host go through two buffers on the device:
        one is filled while the other is sent.
        """
        if not self.is_on_host:
            for flat, bucket in zip(self.flat, self.layout, strict=True):
                yield [self.tensors[spec.name] for spec in bucket] if self.backend == "nccl" else [flat]
            return
        sending, copying = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        largest = max(flat.numel() for flat in self.flat)
        buffers = [(torch.empty(largest, dtype=torch.uint8, device=self.device), torch.cuda.Event()) for _ in range(2)]
        for number, flat in enumerate(self.flat):
            buffer, sent = buffers[number % 2]
            with torch.cuda.stream(copying):
                copying.wait_event(sent)
                filled = buffer[: flat.numel()]
                filled.copy_(flat, non_blocking=True)
            sending.wait_stream(copying)
            yield _views(filled, self.layout[number])
            sent.record(sending)

    @property
    def backend(self) -> str:
        """The kind of process group that can send them."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    @property
    def nbytes(self) -> int:
        return layout_bytes(self.layout)


def layout_bytes(layout: list[list[TensorSpec]]) -> int:
    """Of all buckets together."""
    return sum(_bytes(spec) for bucket in layout for spec in bucket)


def plan_buckets(named_tensors: Iterable[tuple[str, torch.Tensor]], limit_bytes: int) -> list[list[TensorSpec]]:
    """Fill buckets up to `limit_bytes`; a larger tensor gets one of its own.

    Wide types come first, so that every tensor starts at a multiple of its element size, as engines require.
    """
    specs = [TensorSpec(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in named_tensors]
    specs.sort(key=lambda spec: -_dtype(spec.dtype).itemsize)
    buckets: list[list[TensorSpec]] = []
    filled = limit_bytes
    for spec in specs:
        if filled + _bytes(spec) > limit_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(spec)
        filled += _bytes(spec)
    return buckets


def _views(flat: torch.Tensor, bucket: list[TensorSpec]) -> list[torch.Tensor]:
    parts = flat.split([_bytes(spec) for spec in bucket])
    return [part.view(_dtype(spec.dtype)).view(spec.shape) for spec, part in zip(bucket, parts, strict=True)]


def _bytes(spec: TensorSpec) -> int:
    return torch.Size(spec.shape).numel() * _dtype(spec.dtype).itemsize


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)

"""A tensor of the host -> the same on a device, by a copy that nothing waits for."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """From pinned memory, where a GPU is to read it: of other memory the host would wait until all work is done."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

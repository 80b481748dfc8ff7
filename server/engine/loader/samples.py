"""A few of a parameter's values, by which two copies of it are known to be the same."""

import torch
from torch import Tensor

_COUNT = 64


def sampled(parameter: Tensor) -> bytes:
    """The bytes of values spread evenly over a parameter, ends included."""
    flat = parameter.detach().reshape(-1) if parameter.is_contiguous() else parameter.flatten()
    count = min(_COUNT, flat.numel())
    at = torch.arange(count) * (flat.numel() - 1) // max(count - 1, 1)
    values = flat[at.to(flat.device)].cpu()
    return values.view(torch.uint8).numpy().tobytes()

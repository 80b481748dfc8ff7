"""Values on their way from the device, while the host does something else. Knows no models."""

import torch
from torch import Tensor


class Readback:
    """Copies of tensors to the host, asked for in the order of the device's work.

    What is launched later neither delays them nor changes them. On CUDA they go to pinned memory
    of their own, and an event tells that they have arrived.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._values = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if tensors and tensors[0].is_cuda:
            self._arrived = torch.cuda.current_stream(tensors[0].device).record_event()

    def take(self) -> list[Tensor]:
        """The tensors on the host, waited for."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values

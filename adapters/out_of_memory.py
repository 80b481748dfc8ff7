"""How an allocation that failed is told from other failures, on whatever device."""

import torch

_WORDS = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of errors without a type of their own: of torch's allocator on a CPU, of cuBLAS's workspace."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the failure is for want of memory, on the host or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)

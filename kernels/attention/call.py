"""One call of paged attention in the terms of its Triton kernels. Knows no block sizes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from weft.kernels.attention.paged import PagedBatch

LEAST_BLOCK = 16
"""The smallest side of a block that tensor cores multiply."""

LEAST_CLASS = 64
MOST_CLASS = 512


@dataclass(frozen=True)
class Call:
    """See `weft.kernels.attention.paged_attention`; `out` is [T, heads, v_dim], to be filled."""

    out: Tensor
    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    batch: PagedBatch
    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    @property
    def kv_heads(self) -> int:
        """Of the pools."""
        return self.k_pool.shape[2]

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.q.shape[1] // self.kv_heads

    @cached_property
    def problem(self) -> str:
        """The class that plans are chosen by: the width of the pools' values and of a head."""
        dim = max(self.q.shape[2], self.out.shape[2])
        dim = min(max(LEAST_CLASS, power_of_two(dim)), MOST_CLASS)
        return f"{8 * self.k_pool.itemsize}-bit, head {dim}"

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What both attention kernels take first."""
        return (
            self.out,
            self.q,
            self.k_pool,
            self.v_pool,
            self.batch.block_tables,
            self.sinks,
            self.scaling,
            self.window or 0,
            self.batch.block_tables.stride(0),
            self.out.stride(0),
            self.q.stride(0),
            self.q.stride(1),
            self.k_pool.stride(1),
            self.k_pool.stride(2),
            self.v_pool.stride(1),
            self.v_pool.stride(2),
        )

    @property
    def constants(self) -> dict[str, Any]:
        """What both kernels are compiled for."""
        k_dim, v_dim = self.q.shape[2], self.out.shape[2]
        return {
            "SOFTCAP": self.softcap or 0.0,
            "WINDOWED": self.window is not None,
            "PAGE_SIZE": self.batch.page_size,
            "GROUP": self.group,
            "K_DIM": k_dim,
            "V_DIM": v_dim,
            "BLOCK_K_DIM": max(LEAST_BLOCK, power_of_two(k_dim)),
            "BLOCK_V_DIM": max(LEAST_BLOCK, power_of_two(v_dim)),
        }


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()

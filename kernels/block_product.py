"""The product of two blocks in a Triton kernel. Knows no verb."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Triton's interpreter multiplies bfloat16 blocks by their bits: there they are widened first."""


@triton.jit
def block_product(left: tl.tensor, right: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """`sums + left right`: tensor cores for two 16-bit blocks of one dtype, else exact float32."""
    if left.dtype != right.dtype or INTERPRETED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")

"""What one adapter computes beside a sublayer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

Tap = Literal["output", "residual", "sum"]
"""What the network is given: the sublayer's output, the residual stream, or the sum of both."""

TAPS: tuple[Tap, ...] = get_args(Tap)

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "identity": lambda x: x,
    "leaky_relu": functional.leaky_relu,
    "mish": functional.mish,
    "relu": functional.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class Network(NamedTuple):
    """down: [size, width]   down_bias: [size]   up: [width, size]   up_bias: [width].

    activation: a key of ACTIVATIONS
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    activation: str
    tap: Tap

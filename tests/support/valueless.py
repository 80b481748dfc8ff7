"""A tiny model's steps as a GPU gets them, on tensors that have shapes and no values.

Kernels are recorded, not launched. Whatever asks for a value, as whoever waits for a GPU does,
fails; and each copy to the device is noted.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ahead_of_time import recorded
from tiny_models import tiny_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weft.adapters.arena import Arena
from weft.adapters.base import BaseModules
from weft.adapters.modules import adapt
from weft.adapters.operations import LowRank
from weft.adapters.pool import SlotRef
from weft.kernels import attention, low_rank
from weft.kernels.attention import triton as attention_triton
from weft.kernels.attention import triton_decode, triton_prefill, triton_write
from weft.kernels.low_rank import triton as low_rank_triton
from weft.server.engine import probe, weights
from weft.server.engine.attention import AttentionStep, use_paged_attention
from weft.server.engine.forward import Forward
from weft.server.engine.kv_memory import KVLayout
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.sequence import Share
from weft.server.engine.step_plan import Scheduled, StepPlan

META = torch.device("meta")
DTYPE = torch.bfloat16
PAGE_SIZE = 4
SLOTS = 4
RANK = 8
KERNELS = (low_rank_triton, triton_decode, triton_prefill, triton_write)


@dataclass(frozen=True)
class Copy:
    """A copy to the device."""

    shape: tuple[int, ...]
    waits: bool


class ValuelessModel:
    """`tiny_model(arch)` whose modules all have low-rank pairs in every slot."""

    def __init__(self, arch: str) -> None:
        model = weights.skeleton(tiny_config(arch)).to(DTYPE)
        weights.spare_padding_checks(model)
        use_paged_attention(model)
        spec = KVSpec.discover(model)
        base = BaseModules.of(model, spec.refused, spec.shapes)
        arena = torch.empty(1 << 22, dtype=DTYPE, device=META)
        adapted = adapt(model, base, spec.layouts, arena, SLOTS)
        offset = 0

        def tensor(*shape: int) -> Tensor:
            nonlocal offset
            start, offset = offset, offset + math.prod(shape)
            return arena[start:offset].view(shape)

        for table in adapted.tables.values():
            pairs = table.low_rank
            for slot in range(SLOTS) if pairs is not None else ():
                assert pairs is not None
                experts = () if pairs.experts == 1 else (pairs.experts,)
                a, b = (tensor(*experts, RANK, n) for n in (pairs.in_features, pairs.out_features))
                table.set(slot, [LowRank(a, b)])
        self.arena = Arena(arena, adapted.tables)
        self.forward = Forward(model, AttentionStep(), adapted.state, PAGE_SIZE)
        KVLayout(spec, PAGE_SIZE, DTYPE, META).allocate(64, self.forward.attention)


def plan(counts: Sequence[int], shares: Sequence[tuple[Share, ...]]) -> StepPlan:
    """A step that computes so many tokens of each sequence, after 16 that are cached."""
    prompts = [probe.prompt(16 + count, 100) for count in counts]
    sequences = probe.probes(prompts, PAGE_SIZE)
    for seq, own in zip(sequences, shares, strict=True):
        seq.shares = own
    return StepPlan(
        tuple(
            Scheduled(seq, 16, count, samples=True)
            for seq, count in zip(sequences, counts, strict=True)
        )
    )


def alone(slot: int) -> tuple[Share, ...]:
    """The shares of a sequence with one adapter."""
    return (Share(SlotRef(slot, 0)),)


@contextmanager
def copies_noted() -> Iterator[list[Copy]]:
    """The copies to the device that are made meanwhile; kernels are a GPU's, and not launched."""
    found: list[Copy] = []
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(attention, "_backend", lambda tensor: attention_triton)
        patch.setattr(low_rank, "_backend", lambda tensor: low_rank_triton)
        for module in KERNELS:
            stack.enter_context(recorded(module, patch))
        stack.enter_context(_Copies(found))
        yield found


class _Copies(TorchDispatchMode):
    def __init__(self, found: list[Copy]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_meta:
            said = (kwargs or {}).get("non_blocking", False), *args[2:3]  # `copy_` says it third
            goes_on = any(each is True for each in said)
            for tensor in _tensors(args):
                if not tensor.is_meta:
                    self._found.append(Copy(tuple(tensor.shape), waits=not goes_on))
        return result


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)

"""Holds the engine's way of computing against transformers' eager attention, on the real model.

The last safety net: it refuses a model whose answers would depend on chunks, pages or batch mates.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weft.server.engine import probe
from weft.server.engine.step_plan import Scheduled, StepPlan
from weft.server.engine.unsupported import ModelUnsupported

_SHORTEST = 48
_BEYOND_WINDOW = 16
# Other orders of summation move logits about as far as one more rounding of each layer's values;
# what a paged cache breaks moves them much farther.
_TIMES_ROUNDING = 4.0
_SMALLEST_LIMIT = 1e-3


@dataclass(frozen=True)
class SelfTest:
    """Two prompts of `length` and half as many tokens, computed in four or more chunks each."""

    length: int
    vocabulary: int
    page_size: int

    @classmethod
    def design(
        cls, *, window: int, max_model_len: int, vocabulary: int, page_size: int
    ) -> "SelfTest":
        """A test that reaches beyond the longest sliding window (0 for none), where it can."""
        length = min(max(_SHORTEST, window + _BEYOND_WINDOW), max_model_len)
        return cls(length, vocabulary, page_size)

    @property
    def prompts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token ids of both prompts."""
        ids = probe.prompt(self.length, self.vocabulary)
        return ids, ids[::-1][: max(1, self.length // 2)]

    @property
    def pages(self) -> int:
        """Pages of the cache that the test needs, page 0 included."""
        return probe.pages_for(self.prompts, self.page_size)

    def plans(self) -> Iterator[StepPlan]:
        """Chunks of both prompts side by side, their last two tokens one by one."""
        sequences = probe.probes(self.prompts, self.page_size)
        budget = max(3, self.length // 3)
        while open_ := [seq for seq in sequences if seq.remaining]:
            counts = (max(1, min(budget, seq.remaining - 2)) for seq in open_)
            plan = StepPlan(
                tuple(
                    Scheduled(seq, seq.computed, count, samples=True)
                    for seq, count in zip(open_, counts, strict=True)
                )
            )
            yield plan
            for item in plan.items:
                item.seq.computed += item.count

    def positions(self) -> list[list[int]]:
        """For each prompt, the positions whose logits the plans keep."""
        kept: list[list[int]] = [[] for _ in self.prompts]
        for plan in self.plans():
            for item in plan.items:
                kept[item.seq.index].append(item.start + item.count - 1)
        return kept


@dataclass(frozen=True, eq=False)
class Reference:
    """What transformers computes without a cache at the test's positions.

    model: computes it, with eager attention   logits: float32 [positions, vocabulary]
    """

    model: PreTrainedModel
    test: SelfTest
    logits: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, test: SelfTest) -> "Reference":
        """Computes it with `model`, which attends eagerly from now on."""
        model.set_attn_implementation("eager")
        return cls(model, test, _eager_logits(model, test))

    def rounding(self) -> float:
        """How far one more rounding of each layer's values moves the logits.

        Relative to their spread: this model's sensitivity in this dtype.
        """
        self.model.set_attn_implementation("eager")
        with _rounded_once_more(self.model):
            return difference(_eager_logits(self.model, self.test), self.logits)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the same weights in the same memory, and modules and attention of its own."""
    shared = {id(value): value for value in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def computed(run: Callable[[StepPlan], Tensor], test: SelfTest) -> Tensor:
    """The test's logits as `run` (plan → logits of the kept rows) computes them."""
    rows: list[list[Tensor]] = [[] for _ in test.prompts]
    for plan in test.plans():
        for item, row in zip(plan.items, run(plan), strict=True):
            rows[item.seq.index].append(row)
    return torch.stack([row for prompt in rows for row in prompt])


def check_model(logits: Tensor, reference: Reference) -> None:
    """Compares what the engine computed of the test, in the reference's order.

    Raises ModelUnsupported where the logits differ from the reference by more than rounding.
    """
    found = difference(logits, reference.logits)
    if found <= _SMALLEST_LIMIT:
        return
    limit = max(_SMALLEST_LIMIT, _TIMES_ROUNDING * reference.rounding())
    if not found <= limit:
        raise ModelUnsupported(
            "the self-test failed: computed in chunks on a paged cache, the logits differ from "
            f"transformers' own by {found:.2g} of their spread; rounding explains {limit:.2g}"
        )


def difference(logits: Tensor, reference: Tensor) -> float:
    """The distance of two tensors of logits, relative to the spread of the second one."""
    spread = (reference - reference.mean(dim=-1, keepdim=True)).norm()
    return float((logits - reference).norm() / spread)


@torch.inference_mode()
def _eager_logits(model: PreTrainedModel, test: SelfTest) -> Tensor:
    logits = []
    for prompt, kept in zip(test.prompts, test.positions(), strict=True):
        positions = torch.arange(len(prompt), device=model.device)
        output = model(
            input_ids=torch.tensor([prompt], device=model.device),
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=positions[kept],
        )
        logits.append(output.logits[0].float())
    return torch.cat(logits)


@contextmanager
def _rounded_once_more(model: PreTrainedModel) -> Iterator[None]:
    """Moves each value that a linear or embedding gives by at most one unit in its last place."""
    generator = torch.Generator().manual_seed(0)

    def move(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        shift = torch.rand(output.shape, generator=generator) * 2 - 1
        factors = 1 + shift.to(output.device) * torch.finfo(output.dtype).eps
        return (output * factors).to(output.dtype)

    handles = [
        module.register_forward_hook(move)
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

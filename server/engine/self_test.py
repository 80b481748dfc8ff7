"""Holds the engine's way of computing against transformers' eager attention, on the real model.

The last safety net: it refuses a model whose answers would depend on chunks, pages or batch mates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from weft.server.engine import probe
from weft.server.engine.attention import use_paged_attention
from weft.server.engine.checks import ModelUnsupported
from weft.server.engine.sequence import Sequence
from weft.server.engine.step_plan import Scheduled, StepPlan

_SHORTEST = 24
_BEYOND_WINDOW = 16
_SMALLEST_BUDGET = 7
_LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


@dataclass(frozen=True)
class SelfTest:
    """Two prompts of `length` and half as many tokens, computed in four or more chunks each.

    length: more than any sliding window, where the context length allows
    """

    length: int
    vocabulary: int

    @classmethod
    def design(cls, window: int, max_model_len: int, vocabulary: int) -> "SelfTest":
        """A test that reaches beyond the longest sliding window (0 for none)."""
        return cls(min(max(_SHORTEST, window + _BEYOND_WINDOW), max_model_len), vocabulary)

    @property
    def prompts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token ids of both prompts."""
        ids = probe.prompt(self.length, self.vocabulary)
        return ids, ids[::-1][: max(1, self.length // 2)]

    def plans(self, page_size: int) -> Iterator[StepPlan]:
        """Chunks of both prompts side by side, their last two tokens one by one."""
        sequences = probe.probes(self.prompts, page_size)
        while open_ := [seq for seq in sequences if seq.remaining]:
            plan = StepPlan(tuple(self._chunk(seq, len(open_)) for seq in open_))
            yield plan
            for item in plan.items:
                item.seq.computed += item.count

    def _chunk(self, seq: Sequence, mates: int) -> Scheduled:
        budget = max(_SMALLEST_BUDGET, self.length // 3) // mates
        count = min(budget, seq.remaining - 2) if seq.remaining > 2 else 1
        return Scheduled(seq, seq.computed, count, samples=True)


def eager_logits(model: PreTrainedModel, test: SelfTest, page_size: int) -> list[Tensor]:
    """What transformers computes without a cache, for the rows that the plans keep, in order."""
    model.set_attn_implementation("eager")
    positions: dict[int, list[int]] = {}
    for plan in test.plans(page_size):
        for item in plan.items:
            positions.setdefault(item.seq.index, []).append(item.start + item.count - 1)
    logits = [
        _forward(model, prompt, positions[index]) for index, prompt in enumerate(test.prompts)
    ]
    use_paged_attention(model)
    return logits


def check_model(
    run: Callable[[StepPlan], Tensor],
    test: SelfTest,
    expected: list[Tensor],
    *,
    page_size: int,
    dtype: torch.dtype,
) -> float:
    """Computes the test's prompts with `run` (plan → logits of the kept rows).

    Returns the difference relative to the logits' spread; raises ModelUnsupported if it is large.
    """
    found: dict[int, list[Tensor]] = {}
    for plan in test.plans(page_size):
        for item, row in zip(plan.items, run(plan), strict=True):
            found.setdefault(item.seq.index, []).append(row)
    actual = torch.cat([torch.stack(rows) for _, rows in sorted(found.items())])
    reference = torch.cat(expected)
    spread = (reference - reference.mean(dim=-1, keepdim=True)).norm()
    difference = float((actual - reference).norm() / spread)
    limit = _LARGEST_DIFFERENCE[dtype]
    if not difference <= limit:
        raise ModelUnsupported(
            f"the self-test failed: logits differ from transformers' eager attention by "
            f"{difference:.2g} of their spread (at most {limit:g} is rounding)"
        )
    return difference


@torch.inference_mode()
def _forward(model: PreTrainedModel, prompt: tuple[int, ...], rows: list[int]) -> Tensor:
    ids = torch.tensor([prompt], device=model.device)
    positions = torch.arange(len(prompt), device=model.device)
    logits: Tensor = model(
        input_ids=ids,
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=positions[rows],
    ).logits
    return logits[0].float()

"""Computes one step: the model's own forward over the rows of a plan. Knows no scheduling."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from weft.adapters.step_state import StepState
from weft.server.engine.attention import AttentionStep
from weft.server.engine.batch import StepBatch, build
from weft.server.engine.step_plan import StepPlan


@dataclass(frozen=True, eq=False)
class Forward:
    """An adapted model on a paged cache; `attention` and `adapters` are told of each step."""

    model: PreTrainedModel
    attention: AttentionStep
    adapters: StepState
    page_size: int

    def build(self, plan: StepPlan, ids: Tensor | None = None) -> StepBatch:
        """The tensors of a plan that is not empty; ids: of its rows, if only the device has them"""
        return build(plan, self.page_size, self.model.device, ids)

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        """Writes the rows' keys and values to the cache and returns the kept rows' logits.

        Returns float32 [K, vocabulary].
        """
        return self.compute(batch).float()

    def compute(self, batch: StepBatch) -> Tensor:
        """`run`, in the dtype in which the model gives its logits."""
        self.attention.batch = batch.paged
        self.attention.adapters = self.adapters
        self.adapters.begin(batch.segments, batch.kept_segments, batch.virtual, batch.layers)
        logits: Tensor = self.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=batch.kept,
        ).logits
        return logits[0]

    def end(self) -> None:
        """No step is computed any more: lets go of the last one's tensors."""
        self.attention.batch = None
        self.adapters.end()

    def __call__(self, plan: StepPlan) -> Tensor:
        """`run(build(plan))`."""
        return self.run(self.build(plan))

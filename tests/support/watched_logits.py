"""The logits that an engine's model computed, beside what the engine tells of them."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.server.engine.batch import StepBatch
from weft.server.engine.model import ModelHost
from weft.server.engine.step_plan import StepPlan


class WatchedLogits:
    """Those of each row that a token was chosen from, by request; `watch` the engine's model."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, Tensor]] = defaultdict(dict)
        self._plans: dict[StepBatch, StepPlan] = {}

    def watch(self, model: ModelHost) -> ModelHost:
        """The same model, whose steps are heard."""
        return _WatchedModel(**vars(model), watched=self)

    def take(self, request: str, tokens: int) -> Tensor:
        """float32 [tokens, vocabulary]: what its answer of so many tokens was chosen from."""
        rows = self._rows.pop(request)
        return torch.stack([rows[number] for number in range(tokens)]).cpu()

    def begin(self, plan: StepPlan, batch: StepBatch) -> None:
        """A step that is about to be computed."""
        self._plans[batch] = plan

    def end(self, batch: StepBatch, logits: Tensor) -> None:
        """What it computed. A draft that does not stand is heard again by what took its place."""
        rows = iter(logits[list(batch.sampling)])
        for item in self._plans.pop(batch).sampling:
            first = item.plain.stop - item.seq.lead - item.seq.prompt_len
            for draft in range(1 + len(item.drafts)):
                self._rows[item.seq.request.id][first + draft] = next(rows)


@dataclass(frozen=True, eq=False)
class _WatchedModel(ModelHost):
    watched: WatchedLogits

    def build(self, plan: StepPlan, ids: Tensor | None = None) -> StepBatch:
        batch = super().build(plan, ids)
        self.watched.begin(plan, batch)
        return batch

    def run(self, batch: StepBatch) -> Tensor:
        logits = super().run(batch)
        self.watched.end(batch, logits)
        return logits

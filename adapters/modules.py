"""The base's modules wrapped so that each row of a step gets its own adapter's operations.

Knows no files and no requests; which rows belong to which slot is told by the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weft.adapters.base import head_of
from weft.kernels.low_rank import LowRankTable, low_rank_add_, low_rank_embed_add_
from weft.kernels.segments import Segments

_NONE = Segments((), 0)


@dataclass
class StepState:
    """The step that is being computed; set by the engine before each forward.

    segments: adapter rows among all rows of the step
    kept: adapter rows among the rows whose logits are wanted, which are all that the head sees
    """

    segments: Segments = _NONE
    kept: Segments = _NONE


class Adapted(nn.Module):
    """A base module and its adapters' operations. Base rows come out as the base computes them."""

    def __init__(self, base: nn.Module, table: LowRankTable, state: StepState) -> None:
        super().__init__()
        self.base = base
        self.table = table
        self.state = state

    @property
    def weight(self) -> Tensor:
        """The base's weight: modelling code reads its dtype or ties it."""
        return self.base.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        bias: Tensor | None = getattr(self.base, "bias", None)
        return bias

    def segments(self) -> Segments:
        """The adapter rows among the rows that this module sees."""
        return self.state.segments

    def check(self, rows: int, segments: Segments) -> None:
        """Raises RuntimeError where the module got other rows than the step's."""
        if rows != segments.rows:
            raise RuntimeError(f"a module got {rows} rows in a step of {segments.rows}")


class AdaptedLinear(Adapted):
    """`y = W x + bias`, then for each adapter row `y += B (A x)` of its adapter."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features], the step's rows in order; returns [..., out_features]."""
        y: Tensor = self.base(x)
        segments = self.segments()
        if self.table.any_in(segments.slots):
            rows = x.reshape(-1, x.shape[-1])
            self.check(len(rows), segments)
            low_rank_add_(y.view(-1, y.shape[-1]), rows, self.table, segments)
        return y


class AdaptedHead(AdaptedLinear):
    """The output head: it is given only the rows whose logits are wanted."""

    def segments(self) -> Segments:
        """The adapter rows among the kept rows."""
        return self.state.kept


class AdaptedEmbedding(Adapted):
    """`y = W[ids]`, then for each adapter row `y += B A[:, ids]` of its adapter."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids: int64 [...], the step's rows in order; returns [..., width]."""
        y: Tensor = self.base(ids)
        segments = self.segments()
        if self.table.any_in(segments.slots):
            rows = ids.reshape(-1)
            self.check(len(rows), segments)
            low_rank_embed_add_(y.view(-1, y.shape[-1]), rows, self.table, segments)
        return y


@dataclass(frozen=True)
class AdaptedModules:
    """The handle of an adapted model: where slots are filled, and where a step is announced."""

    tables: Mapping[str, LowRankTable]
    state: StepState = field(default_factory=StepState)


def adapt(model: PreTrainedModel, tables: Mapping[str, LowRankTable]) -> AdaptedModules:
    """Wraps, in place, each module named in `tables`; call it last, after tying and prepacking.

    A module that no slot of a step has a pair for costs one set lookup.
    """
    adapted = AdaptedModules(dict(tables))
    head = head_of(model)
    for name, table in adapted.tables.items():
        module = model.get_submodule(name)
        wrapper = _wrapper(module, is_head=name == head)
        model.set_submodule(name, wrapper(module, table, adapted.state))
    return adapted


def _wrapper(module: nn.Module, *, is_head: bool) -> type[Adapted]:
    if isinstance(module, nn.Embedding):
        return AdaptedEmbedding
    if isinstance(module, nn.Linear | Conv1D):
        return AdaptedHead if is_head else AdaptedLinear
    raise TypeError(f"{type(module).__name__} cannot be adapted")

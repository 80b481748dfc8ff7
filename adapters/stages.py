"""Which operations a module of each kind can take, in which order, and by which kernel.

This is the one place that says so; `weft.adapters.operations` says what they mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weft.adapters.expert_maps import ExpertMap
from weft.adapters.operations import (
    AttendedPrompt,
    AttentionPrefix,
    Bottleneck,
    Dense,
    InputRotation,
    InputScale,
    Kronecker,
    LowRank,
    Operation,
    OutputScale,
    OutputShift,
    Override,
    PairRotation,
    RowOverride,
    Sparse,
    VirtualTokens,
)
from weft.adapters.sublayers import Residual
from weft.kernels.bottleneck import Network, bottleneck_add_
from weft.kernels.dense import dense_add_, kronecker_add_, sparse_add_
from weft.kernels.low_rank import low_rank_add_, low_rank_embed_add_
from weft.kernels.prompt_attention import Prompt, attend_prompt_add_
from weft.kernels.replacement import replace_embedded_, replace_outputs_
from weft.kernels.rotation import rotate_blocks_, rotate_pairs_
from weft.kernels.scale import scale_, shift_
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

InputVerb = Callable[[Tensor, Any, Segments], None]
"""Called with (x, table, segments); changes x in place."""
OutputVerb = Callable[[Tensor, Tensor, Any, Segments], None]
"""Called with (y, x, table, segments); changes y in place."""


@dataclass(frozen=True)
class Stages:
    """The operations that come before a module and those after it, in order.

    ends: those after all others, also after what other versions add to the same rows
    apart: kinds that are not applied to an adapter's rows, but where a step asks for them
    """

    inputs: Mapping[type[Operation], InputVerb]
    outputs: Mapping[type[Operation], OutputVerb]
    ends: Mapping[type[Operation], OutputVerb] = field(default_factory=dict)
    apart: frozenset[type[Operation]] = frozenset()

    @property
    def kinds(self) -> frozenset[type[Operation]]:
        """All operations that the module can take."""
        return frozenset({*self.inputs, *self.outputs, *self.ends}) | self.apart


def override_(y: Tensor, x: Tensor, table: SlotTable[nn.Module], segments: Segments) -> None:
    """`y[s] = module(x[s])` for the rows s of each segment, with the module of its slot."""
    for rows, module in table.rows(segments):
        y[rows] = module(x[rows])


def _on_output(verb: Callable[[Tensor, Any, Segments], None]) -> OutputVerb:
    return lambda y, x, table, segments: verb(y, table, segments)


LINEAR = Stages(
    inputs={InputRotation: rotate_blocks_, InputScale: scale_},
    outputs={
        Override: override_,
        RowOverride: replace_outputs_,
        OutputScale: _on_output(scale_),
        OutputShift: _on_output(shift_),
        LowRank: low_rank_add_,
        Dense: dense_add_,
        Sparse: sparse_add_,
        Kronecker: kronecker_add_,
        PairRotation: _on_output(rotate_pairs_),
    },
)
EMBEDDING = Stages(
    inputs={},
    outputs={
        Override: override_,
        RowOverride: replace_embedded_,
        OutputScale: _on_output(scale_),
        OutputShift: _on_output(shift_),
        LowRank: low_rank_embed_add_,
    },
    apart=frozenset({VirtualTokens}),
)
EXPERT_MAP = Stages(inputs={}, outputs={LowRank: low_rank_add_})
ATTENTION = Stages(inputs={}, outputs={}, apart=frozenset({AttentionPrefix}))
# Norms, routers, experts: whatever computes each row by itself can be given other parameters.
OTHER = Stages(inputs={}, outputs={Override: override_})


def stages_of(module: nn.Module | ExpertMap) -> Stages:
    """The stages of a module of the base, or of a map of its experts."""
    match module:
        case nn.Linear() | Conv1D():
            return LINEAR
        case nn.Embedding():
            return EMBEDDING
        case ExpertMap():
            return EXPERT_MAP
        case _:
            return OTHER


def sublayer_stages(
    module: nn.Module, residual: Residual, queries: Callable[[], Tensor] | None
) -> Stages:
    """The stages of the module that a sublayer ends with.

    queries: gives those of the sublayer if it is attention
    """

    def bottleneck_(y: Tensor, x: Tensor, table: SlotTable[Network], segments: Segments) -> None:
        bottleneck_add_(y, residual.take(y.shape[-1]), table, segments)

    stages = replace(stages_of(module), ends={Bottleneck: bottleneck_})
    if queries is None:
        return stages
    given = queries

    def attend_(y: Tensor, table: SlotTable[Prompt], segments: Segments) -> None:
        attend_prompt_add_(y, given(), table, segments)

    if isinstance(module, Conv1D):
        return replace(stages, ends={AttendedPrompt: _on_output(attend_), **stages.ends})
    return replace(stages, inputs={**stages.inputs, AttendedPrompt: attend_})

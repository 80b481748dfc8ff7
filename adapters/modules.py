"""The base's modules wrapped so that each row of a step gets its own adapter's operations.

Knows no files and no requests; which rows belong to which slot is told by the step.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft.adapters.base import BaseModules
from weft.adapters.experts import EXPERT_ROWS, AdaptedExperts
from weft.adapters.module_tables import Active, ModuleTables
from weft.adapters.operations import Bottleneck, Operation, VirtualTokens
from weft.adapters.overridable import Overridable, RowLayout
from weft.adapters.stages import ATTENTION, sublayer_stages
from weft.adapters.step_state import StepState, check_rows
from weft.adapters.sublayers import Residual, Sublayer, sublayers_of
from weft.kernels.opaque import RowOperator
from weft.kernels.segments import Segments

_MANY_ROWS = 64


class Adapted:
    """A base module and its adapters' operations. Base rows come out as the base computes them.

    The module stays where it is; its forward is replaced in steps in which an adapter is used, so
    that others cost nothing. One in which no slot of the step has an operation costs a set lookup.
    """

    def __init__(self, base: nn.Module, width: int, tables: ModuleTables, state: StepState) -> None:
        """width: of the rows that the module gives."""
        self.tables = tables
        self.state = state
        self._base = base
        self._forward = base.forward
        self._attached = self.forward
        self._operator = RowOperator(self.changed, width, self.dtype_of(base))
        state.watch(self._attach)

    def segments(self) -> Segments:
        """The adapter rows among the rows that this module sees."""
        return self.state.segments

    def layers(self) -> Iterator[tuple[Segments, Tensor]]:
        """The adapter rows of each layer, among the same rows, and their weights."""
        return ((layer.segments, layer.weights) for layer in self.state.layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: the step's rows in order, as the base module takes them."""
        return self._operator(x) if torch.compiler.is_compiling() else self.changed(x)

    def changed(self, x: Tensor) -> Tensor:
        """What `forward` gives, computed now."""
        segments = self.segments()
        active = self.tables.active(segments)
        y = self.computed(x) if active is None else self.adapted(x, active, segments)
        if self.state.layers:
            self.add_layers(y.view(-1, y.shape[-1]), self.rows(x))
        if active is not None:
            for change, table in active.ends:
                change(y.view(-1, y.shape[-1]), self.rows(x), table, segments)
        return y

    def computed(self, x: Tensor) -> Tensor:
        """All rows as the base computes them."""
        y: Tensor = self._forward(x)
        return y

    def add_layers(self, y: Tensor, x: Tensor) -> None:
        """Adds to y what the layers' slots add, times their weights; x, y: a row of the step each.

        Raises RuntimeError for a slot that does more than add.
        """
        for segments, weights in self.layers():
            if not self.tables.any_in(segments.slots):
                continue
            check_rows(len(x), segments)
            if not self.tables.only_add(segments.slots):
                raise RuntimeError("a version that does more than add was given a weight")
            added = torch.zeros_like(y)
            for change, table in self.tables.outputs:
                if table.any_in(segments.slots):
                    change(added, x, table, segments)
            for segment in segments:
                rows = slice(segment.start, segment.stop)
                y[rows].addcmul_(added[rows], weights[rows, None].to(y.dtype))

    def dtype_of(self, base: nn.Module) -> torch.dtype | None:
        """Of the rows that the base gives; None: of the rows that it is given."""
        return None

    def rows(self, x: Tensor) -> Tensor:
        """`x` with one row of the step in each row."""
        return x.reshape(-1, x.shape[-1])

    def adapted(self, x: Tensor, active: Active, segments: Segments) -> Tensor:
        """The base's output of `x`, changed by the operations of the segments' slots."""
        rows = self.rows(x)
        check_rows(rows.shape[0], segments)
        if active.inputs:
            rows = rows.clone()  # others see them too
            for change, table in active.inputs:
                change(rows, table, segments)
            x = rows.view(x.shape)
        y = self.computed(x)
        results = y.view(-1, y.shape[-1])
        # Where several operations change few rows, to widen and round them once is faster.
        together = len(active.outputs) > 1 and rows.shape[0] < _MANY_ROWS
        wide = results.to(self.tables.dtype) if together else results
        for apply, table in active.outputs:
            apply(wide, rows, table, segments)
        if wide is not results:
            results.copy_(wide)
        return y

    def _attach(self, used: bool) -> None:
        """Told whether steps use adapters from now on."""
        if used:
            self._base.__dict__["forward"] = self._attached
        else:
            self._base.__dict__.pop("forward", None)


class AdaptedLinear(Adapted):
    """A linear layer; x: [..., in_features], returns [..., out_features]."""


class AdaptedHead(AdaptedLinear):
    """The output head: it is given only the rows whose logits are wanted."""

    def segments(self) -> Segments:
        """The adapter rows among the kept rows."""
        return self.state.kept

    def layers(self) -> Iterator[tuple[Segments, Tensor]]:
        """The adapter rows of each layer among the kept rows, and their weights."""
        return ((layer.kept, layer.kept_weights) for layer in self.state.layers)


class AdaptedEmbedding(Adapted):
    """An embedding; x: int64 [...], returns [..., width], virtual tokens as they are brought."""

    def changed(self, x: Tensor) -> Tensor:
        """x: the step's token ids; any id stands for a virtual token."""
        y = super().changed(x)
        for virtual in self.state.virtual:
            for slot in virtual.slots:
                entry = self.tables.table(VirtualTokens).get(slot)
                if entry is not None:
                    (embeddings,) = entry
                    rows = y.view(-1, y.shape[-1])[virtual.rows]
                    rows.copy_(embeddings[virtual.first : virtual.first + len(rows)])
        return y

    def dtype_of(self, base: nn.Module) -> torch.dtype | None:
        """The table's."""
        weight = base._parameters["weight"]  # which is not read, as that may widen all of it
        return None if weight is None else weight.dtype

    def rows(self, x: Tensor) -> Tensor:
        """The ids in one dimension."""
        return x.reshape(-1)


@dataclass(frozen=True)
class AdaptedModules:
    """The handle of an adapted model: where slots are filled, and where a step is announced."""

    tables: Mapping[str, ModuleTables]
    state: StepState


def adapt(
    model: PreTrainedModel,
    base: BaseModules,
    layouts: Mapping[str, RowLayout],
    arena: Tensor,
    slots: int,
) -> AdaptedModules:
    """Lets adapters change each module of `base` that they can; call it last, after tying.

    layouts: of the modules beside linear layers and embeddings, by name
    """
    state = StepState()
    tables: dict[str, ModuleTables] = {}
    sublayers = {sublayer.output: sublayer for sublayer in sublayers_of(base.types)}
    for name, target in base.items():
        if target.refusal is None:
            module = model.get_submodule(name)
            if name in sublayers:
                tables[name] = _sublayer_tables(model, sublayers[name], state, arena, slots)
            else:
                tables[name] = ModuleTables(module, arena, slots)
            wrapper = _wrapper(module, is_head=name == base.head)
            wrapper(module, target.out_features, tables[name], state)
    for name, layout in layouts.items():
        module = model.get_submodule(name)
        maps = [m for m in base.experts.values() if m.module == name and m.refusal is None]
        if maps and layout == EXPERT_ROWS:
            tables |= AdaptedExperts(name, module, maps, state, arena, slots).tables
        else:
            tables |= Overridable(name, module, layout, state, arena, slots).tables
    for name in base.attention:
        module = model.get_submodule(name)
        tables[name] = ModuleTables(module, arena, slots, stages=ATTENTION)
    return AdaptedModules(tables, state)


def _sublayer_tables(
    model: nn.Module, sublayer: Sublayer, state: StepState, arena: Tensor, slots: int
) -> ModuleTables:
    """Of the module that the sublayer ends with."""
    module, norm = map(model.get_submodule, (sublayer.output, sublayer.norm))
    residual = Residual(norm)
    queries = state.attended if sublayer.part == "attention" else None

    def begin(used: frozenset[int]) -> None:
        residual.watch(needed=networks.any_in(used))

    def in_use(kinds: Collection[type[Operation]]) -> None:
        state.follow(begin, follows=Bottleneck in kinds)

    stages = sublayer_stages(module, residual, queries)
    tables = ModuleTables(module, arena, slots, stages=stages, in_use=in_use)
    networks = tables.table(Bottleneck)
    return tables


def _wrapper(module: nn.Module, *, is_head: bool) -> type[Adapted]:
    if isinstance(module, nn.Embedding):
        return AdaptedEmbedding
    return AdaptedHead if is_head else AdaptedLinear

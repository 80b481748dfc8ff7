"""Layers of experts wrapped so that each row's experts compute with its own adapter.

Knows no files and no requests; which rows belong to which slot is told by the step.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weft.adapters.expert_maps import ExpertMap, parameters_of
from weft.adapters.module_tables import ModuleTables
from weft.adapters.overridable import Overridable, RowLayout
from weft.adapters.step_state import StepState, check_rows
from weft.kernels.experts import Routing, expert_linear
from weft.kernels.segments import Segment, Segments

EXPERT_ROWS = RowLayout(arguments=(0, 0, 0), results=(0,))
"""How a layer of experts must see a step: hidden states, experts chosen and their weights."""


@dataclass(frozen=True, eq=False)
class _Added:
    """Adapter rows among the pairs of rows and experts, and the weight of what is added to each.

    weights: float32 [pairs], or None where all are 1
    """

    pairs: Segments
    weights: Tensor | None


class AdaptedExperts(Overridable):
    """A layer of experts whose maps take what adapters add to them, between its own steps.

    The base computes it itself in steps in which no slot adds to its maps. In others the same
    is computed here, once for all rows, and each adapter's rows get what theirs adds.

    maps: the layer's, which become tables of their own
    """

    def __init__(
        self,
        name: str,
        base: nn.Module,
        maps: Iterable[ExpertMap],
        state: StepState,
        arena: Tensor,
        slots: int,
    ) -> None:
        super().__init__(name, base, EXPERT_ROWS, state, arena, slots)
        self._maps = {m.parameter: m for m in maps}
        self._added_to = {
            parameter: ModuleTables(m, arena, slots, in_use=self._follow)
            for parameter, m in self._maps.items()
        }
        self.tables |= {m.name: self._added_to[parameter] for parameter, m in self._maps.items()}

    def computed(self, *args: Tensor) -> Any:
        """All rows with the base's parameters and what the step's adapters add to them."""
        layers = [layer for layer in self._layers() if self._adds_in(layer)]
        if not layers:
            return super().computed(*args)
        check_rows(len(args[0]), self.state.segments)
        return self._run(self.base, args, layers)

    def overridden(self, module: nn.Module, slot: int, *args: Tensor) -> Any:
        """Rows of a slot with its own parameters, and with what it adds to the layer's maps."""
        rows = len(args[0])
        only = Segments((Segment(slot, 0, rows),), rows)
        if not self._adds_in((only, None)):
            return super().overridden(module, slot, *args)
        return self._run(module, args, [(only, None)])

    def _layers(self) -> Iterator[tuple[Segments, Tensor | None]]:
        """The step's adapter rows, and those of further adapters with weights."""
        yield self.state.segments, None
        for layer in self.state.layers:
            yield layer.segments, layer.weights

    def _adds_in(self, layer: tuple[Segments, Tensor | None]) -> bool:
        slots = layer[0].slots
        return any(tables.any_in(slots) for tables in self._added_to.values())

    def _run(
        self,
        module: Any,
        args: tuple[Tensor, ...],
        layers: Iterable[tuple[Segments, Tensor | None]],
    ) -> Tensor:
        """What transformers says that a layer of experts computes, with what adapters add.

        module: the layer, or one like it with other parameters
        """
        hidden, chosen, weights = args
        first, last = parameters_of(module)
        routing = Routing.of(chosen, self._maps[last].experts)
        added = [
            _Added(routing.segments(segments), None if weight is None else weight[routing.rows])
            for segments, weight in layers
        ]
        y = self._map(module, first, hidden[routing.rows], routing, added)
        y = module._apply_gate(y) if module.has_gate else module.act_fn(y)
        y = self._map(module, last, y, routing, added)
        if getattr(module, "has_post_expert_norm", False):
            y = module.post_expert_norm(y)
        return routing.combine(y, weights).to(hidden.dtype)

    def _map(
        self, module: nn.Module, parameter: str, x: Tensor, routing: Routing, added: list[_Added]
    ) -> Tensor:
        """One linear map of all pairs, x: [pairs, in_features]."""
        weight = getattr(module, parameter)
        bias = getattr(module, f"{parameter}_bias") if module.has_bias else None
        transposed = self._maps[parameter].transposed
        y = expert_linear(x, weight, bias, routing, transposed=transposed)
        for change, table in self._added_to[parameter].outputs:
            for part in added:
                if not table.any_in(part.pairs.slots):
                    continue
                if part.weights is None:
                    change(y, x, table, part.pairs)
                    continue
                delta = torch.zeros_like(y)
                change(delta, x, table, part.pairs)
                y.addcmul_(delta, part.weights[:, None].to(y.dtype))
        return y

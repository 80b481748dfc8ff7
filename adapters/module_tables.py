"""What each slot does in one module of the base: a table for each kind of operation.

Knows no versions; the arena says which slot holds what, the wrapped module computes with it.
"""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weft.adapters.expert_maps import ExpertMap
from weft.adapters.operations import LowRank, Operation, Override
from weft.adapters.stages import InputVerb, OutputVerb, Stages, stages_of
from weft.kernels.low_rank import LowRankTable, ReplayedSegments
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

Table = LowRankTable | SlotTable[Any]
Verb = TypeVar("Verb")


class PlacedPair(NamedTuple):
    """A LowRank that lies in the arena: where its tensors begin, in elements, and its rank."""

    offset_a: int
    offset_b: int
    rank: int


@dataclass(frozen=True, slots=True)
class Active:
    """The tables in which some slots have operations, with their verbs, in the stages' order."""

    inputs: tuple[tuple[InputVerb, Table], ...]
    outputs: tuple[tuple[OutputVerb, Table], ...]
    ends: tuple[tuple[OutputVerb, Table], ...]


class ModuleTables:
    """The operations by slot on one module, or on one map of a layer of experts.

    arena: 1-D, holds the operations' tensors   slots: how many there are
    stages: what the module can take, if its type does not tell
    in_use: called with the kinds of operations that slots have, each time that changes

    dtype: the arena's
    low_rank: the low-rank pairs, or None where the module cannot take any
    inputs, outputs, ends: the tables in use with their verbs, in the order of the stages
    """

    def __init__(
        self,
        module: nn.Module | ExpertMap,
        arena: Tensor,
        slots: int,
        stages: Stages | None = None,
        in_use: Callable[[Collection[type[Operation]]], None] = lambda kinds: None,
    ) -> None:
        self._module = module
        self._stages = stages or stages_of(module)
        self._in_use = in_use
        self._kinds: dict[int, tuple[type[Operation], ...]] = {}
        self._users: Counter[type[Operation]] = Counter()
        self._used: set[type[Operation]] = set()
        self._tables: dict[type[Operation], SlotTable[Any]] = {}
        self._asked: frozenset[int] | None = None
        self._active: Active | None = None
        self.dtype = arena.dtype
        self.low_rank = _low_rank_table(module, arena, slots)
        self.inputs: tuple[tuple[InputVerb, Table], ...] = ()
        self.outputs: tuple[tuple[OutputVerb, Table], ...] = ()
        self.ends: tuple[tuple[OutputVerb, Table], ...] = ()

    def accepts(self, op: Operation) -> bool:
        """Whether the module can take an operation of this kind."""
        return type(op) in self._stages.kinds

    def any_in(self, slots: Iterable[int]) -> bool:
        """Whether any of `slots` has an operation here."""
        return not self._kinds.keys().isdisjoint(slots)

    def active(self, segments: Segments) -> Active | None:
        """What the operations of the segments' slots are; None where they have none here.

        Found once for a set that is asked for again, as each step asks for its own. A step that is
        captured applies pairs wherever a slot may have one when it is replayed.
        """
        if isinstance(segments, ReplayedSegments):
            return self._pairs
        slots = segments.slots
        if slots is not self._asked:
            self._asked = slots
            self._active = self._of(slots) if self.any_in(slots) else None
        return self._active

    @property
    def takes_pairs(self) -> bool:
        """Whether pairs can be added to the step's rows here, as they come to the module."""
        is_module = isinstance(self._module, nn.Module)
        return is_module and self.low_rank is not None and LowRank in self._stages.outputs

    def pair_rank(self, op: Operation) -> int | None:
        """The rank of a pair that is added to the step's rows; 0 of what is not applied to these.

        None of anything more, which a captured step does not compute.
        """
        if type(op) in self._stages.apart:
            return 0
        return op.rank if isinstance(op, LowRank) and self.takes_pairs else None

    @cached_property
    def _pairs(self) -> Active | None:
        if not self.takes_pairs:
            return None
        assert self.low_rank is not None
        return Active((), ((self._stages.outputs[LowRank], self.low_rank),), ())

    @property
    def in_use(self) -> bool:
        """Whether any slot has an operation here."""
        return bool(self._used)

    def only_add(self, slots: Iterable[int]) -> bool:
        """Whether what these slots do here are additions."""
        return all(kind.adds for slot in slots for kind in self._kinds.get(slot, ()))

    def set(self, slot: int, ops: Sequence[Operation | PlacedPair]) -> None:
        """Lets `slot` compute with operations whose tensors are views of the arena."""
        self.clear(slot)
        self._asked = None
        self._kinds[slot] = tuple(LowRank if isinstance(op, PlacedPair) else type(op) for op in ops)
        self._users.update(self._kinds[slot])
        for op in ops:
            self._place(slot, op)
        self._refresh()

    def clear(self, slot: int) -> None:
        """Lets `slot` change nothing; can be tried again where memory was short."""
        kinds = self._kinds.get(slot)
        self._asked = None
        if kinds is not None:
            for kind in kinds:
                self._any_table(kind).clear(slot)
            del self._kinds[slot]
            self._users.subtract(kinds)
            self._refresh()

    def table(self, kind: type[Operation]) -> SlotTable[Any]:
        """What the slots compute with, by tensors, or for an Override by module; not of LowRank."""
        return self._tables.setdefault(kind, SlotTable())

    def _place(self, slot: int, op: Operation | PlacedPair) -> None:
        if isinstance(op, PlacedPair):
            assert self.low_rank is not None
            self.low_rank.set(slot, *op)
        elif isinstance(op, LowRank):
            assert self.low_rank is not None
            start = int(self.low_rank.arena.storage_offset())
            at_a, at_b = (int(tensor.storage_offset()) - start for tensor in (op.a, op.b))
            self.low_rank.set(slot, at_a, at_b, op.rank)
        elif isinstance(op, Override):
            assert isinstance(self._module, nn.Module)
            self.table(Override).set(slot, twin(self._module, op.parameters))
        else:
            self.table(type(op)).set(slot, op.entry)

    def _any_table(self, kind: type[Operation]) -> Table:
        if kind is LowRank and self.low_rank is not None:
            return self.low_rank
        return self.table(kind)

    def _refresh(self) -> None:
        """Rebuilds what a step looks at, where other kinds are in use than before."""
        used = {kind for kind, count in self._users.items() if count}
        if used != self._used:
            self._used = used
            self.inputs = self._in_order(self._stages.inputs)
            self.outputs = self._in_order(self._stages.outputs)
            self.ends = self._in_order(self._stages.ends)
            self._in_use(used)

    def _of(self, slots: frozenset[int]) -> Active:
        return Active(
            inputs=tuple(each for each in self.inputs if each[1].any_in(slots)),
            outputs=tuple(each for each in self.outputs if each[1].any_in(slots)),
            ends=tuple(each for each in self.ends if each[1].any_in(slots)),
        )

    def _in_order(self, verbs: Mapping[type[Operation], Verb]) -> tuple[tuple[Verb, Table], ...]:
        return tuple(
            (verb, self._any_table(kind)) for kind, verb in verbs.items() if kind in self._used
        )


def twin(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """A module like `module`, sharing all it has, but with these of its own parameters."""
    result = copy.copy(module)
    result.__dict__.pop("forward", None)  # what other slots' overrides have put there
    result._parameters = {**module._parameters, **parameters}  # type: ignore[dict-item]
    return result


def _low_rank_table(
    module: nn.Module | ExpertMap, arena: Tensor, slots: int
) -> LowRankTable | None:
    match module:
        case nn.Linear():
            return LowRankTable(arena, slots, module.in_features, module.out_features)
        case Conv1D():
            return LowRankTable(arena, slots, module.nx, module.nf)
        case nn.Embedding():
            return LowRankTable(arena, slots, module.num_embeddings, module.embedding_dim)
        case ExpertMap():
            widths = (module.in_features, module.out_features)
            return LowRankTable(arena, slots, *widths, experts=module.experts)
        case _:
            return None

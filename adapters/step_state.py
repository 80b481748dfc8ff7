"""What adapted modules are told of the step that is being computed. Knows no modules."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from weft.kernels.segments import Segments

_NONE = Segments((), 0)


@dataclass(frozen=True, slots=True)
class VirtualRows:
    """These `rows` of a step are virtual tokens, from number `first` on, of one of these slots."""

    slots: tuple[int, ...]
    rows: slice
    first: int


@dataclass(frozen=True, eq=False)
class Layer:
    """One more adapter for some rows of a step, whose additions are weighted.

    segments, weights: among all rows, float32 [rows]   kept, kept_weights: among the kept rows
    """

    segments: Segments
    weights: Tensor
    kept: Segments
    kept_weights: Tensor


@dataclass
class StepState:
    """The step that is being computed; set by the engine before each forward.

    segments: adapter rows among all rows of the step
    kept: adapter rows among the rows whose logits are wanted, which are all that the head sees
    virtual: the rows of virtual tokens
    layers: what is added to rows for which more than one adapter is used, or not just as it is
    queries: of the attention layer that ran last, [rows, heads, dim]; set by it
    """

    segments: Segments = _NONE
    kept: Segments = _NONE
    virtual: tuple[VirtualRows, ...] = ()
    layers: tuple[Layer, ...] = ()
    queries: Tensor | None = None
    _used: bool = False
    _told: list[Callable[[bool], None]] = field(default_factory=list)
    _following: set[Callable[[frozenset[int]], None]] = field(default_factory=set)

    def begin(
        self,
        segments: Segments,
        kept: Segments,
        virtual: tuple[VirtualRows, ...],
        layers: tuple[Layer, ...],
    ) -> None:
        """The next step; see the class."""
        self.segments, self.kept, self.virtual, self.layers = segments, kept, virtual, layers
        used = bool(segments or virtual or layers)
        if used != self._used:
            self._used = used
            for tell in self._told:
                tell(used)
        if self._following:
            slots = segments.slots.union(*(layer.segments.slots for layer in layers))
            for tell_slots in self._following:
                tell_slots(slots)

    def end(self) -> None:
        """No step is computed any more: the modules are the base's own, and no tensor is kept."""
        self.begin(_NONE, _NONE, (), ())
        self.queries = None

    def watch(self, tell: Callable[[bool], None]) -> None:
        """Calls `tell` when the next step is the first that uses adapters, or that does not."""
        self._told.append(tell)

    def follow(self, tell: Callable[[frozenset[int]], None], *, follows: bool) -> None:
        """Calls `tell` with each step's slots from now on, or a last time with none."""
        if follows:
            self._following.add(tell)
        else:
            self._following.discard(tell)
            tell(frozenset())

    def attended(self) -> Tensor:
        """The queries of the attention whose output is projected now."""
        if self.queries is None:
            raise RuntimeError("an attention's output was projected before it attended")
        return self.queries


def check_rows(rows: int, segments: Segments) -> None:
    """Raises RuntimeError where a module got other rows than the step's."""
    if rows != segments.rows:
        raise RuntimeError(f"a module got {rows} rows in a step of {segments.rows}")

"""What one step computes: rows of sequences, sorted by adapter slot. Knows no tensors."""

from dataclasses import dataclass

from weft.server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Rows for positions `[start, start + count)` of `seq`; its pages cover them all.

    `samples`: the last row's logits choose the sequence's next token.
    """

    seq: Sequence
    start: int
    count: int
    samples: bool

    @property
    def slot(self) -> int:
        """The adapter slot that computes these rows; -1 for the base model."""
        return -1 if self.seq.slot is None else self.seq.slot.slot


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work: base rows first, then ascending by adapter slot. Empty: nothing to do."""

    items: tuple[Scheduled, ...]

    @property
    def rows(self) -> int:
        """Number of tokens in the step."""
        return sum(item.count for item in self.items)

    @property
    def sampling(self) -> tuple[Scheduled, ...]:
        """The items that sample, in the order in which `commit` takes their tokens."""
        return tuple(item for item in self.items if item.samples)

    def __bool__(self) -> bool:
        return bool(self.items)

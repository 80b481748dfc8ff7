"""What one step computes: rows of sequences, sorted by adapter slot. Knows no tensors."""

from dataclasses import dataclass

from weft.server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Rows for positions `[start, start + count)` of `seq`; its pages cover them all.

    samples: the last row's logits choose the sequence's next token
    copies: so many positions before `start` get their KV from the adapter's prefix first
    """

    seq: Sequence
    start: int
    count: int
    samples: bool
    copies: int = 0

    @property
    def stop(self) -> int:
        """The position after the last one."""
        return self.start + self.count

    @property
    def slot(self) -> int:
        """The adapter slot that computes the last row; -1 for the base model."""
        slot = self.seq.slot
        return -1 if slot is None or self.stop <= self.seq.base_until else slot.slot

    @property
    def slots(self) -> list[int]:
        """The adapter slot that computes each row: the base's own rows come first."""
        base = min(max(self.seq.base_until - self.start, 0), self.count)
        return [-1] * base + [self.slot] * (self.count - base)


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

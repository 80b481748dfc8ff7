"""What one step computes: rows of sequences, sorted by adapters. Knows no tensors."""

from dataclasses import dataclass, replace

from weft.server.engine.sequence import Sequence, Share


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Rows for positions `[start, start + count)` of `seq`; its pages cover them all.

    samples: the last row's logits choose the sequence's next token
    copies: so many positions before `start` get their KV from the adapter's prefix first
    drafts: what the last rows are if the sequence goes on so; each one's logits choose a token too
    """

    seq: Sequence
    start: int
    count: int
    samples: bool
    copies: int = 0
    drafts: tuple[int, ...] = ()

    @property
    def plain(self) -> "Scheduled":
        """The same without drafts."""
        return replace(self, count=self.count - len(self.drafts), drafts=())

    @property
    def stop(self) -> int:
        """The position after the last one."""
        return self.start + self.count

    @property
    def shares(self) -> tuple[Share, ...]:
        """What computes the last row; empty for the base model."""
        return () if self.stop <= self.seq.base_until else self.seq.shares

    @property
    def slots(self) -> list[int]:
        """For each row the slot that computes it, of several the first one.

        -1 for the base, whose own rows come first, and where none is used just as it is.
        """
        base = min(max(self.seq.base_until - self.start, 0), self.count)
        whole = self.shares and self.shares[0].weight == 1
        slot = self.shares[0].ref.slot if whole else -1
        return [-1] * base + [slot] * (self.count - base)

    @property
    def further(self) -> tuple[Share, ...]:
        """What else is added to all rows."""
        whole = self.shares and self.shares[0].weight == 1
        return self.shares[1:] if whole else self.shares

    @property
    def order(self) -> tuple[tuple[tuple[tuple[int, int], int], ...], int]:
        """By adapters, alike ones together, so that a step has few segments; then by arrival."""
        refs = (share.ref for share in self.shares)
        return tuple((ref.place, ref.slot) for ref in refs), self.seq.arrival


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work: base rows first, then by adapters. Empty: nothing to do.

    is_ahead: whether it was planned while the step before it ran, whose tokens its rows are
    """

    items: tuple[Scheduled, ...]
    is_ahead: bool = False

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

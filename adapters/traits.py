"""What a version asks of the sequences that use it, beside operations on their rows. No tensors."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traits:
    """How positions and rows of a sequence differ from the base's.

    embeddings: virtual tokens before the prompt, computed from embeddings that the version brings
    prefix: positions before the prompt whose keys and values the version brings
    invocation: token ids; rows before their last occurrence in the prompt are the base's, which
        are all rows where they do not occur. Empty: all rows are the version's
    additive: what it does to its rows are additions, so that others can be added to them
    """

    embeddings: int = 0
    prefix: int = 0
    invocation: tuple[int, ...] = ()
    additive: bool = True

    def __post_init__(self) -> None:
        if self.embeddings and self.prefix:
            raise ValueError("a version has either virtual tokens or a prefix")

    @property
    def lead(self) -> int:
        """Positions before the prompt's first token."""
        return self.embeddings + self.prefix


PLAIN = Traits()


def combined(parts: Sequence[tuple[Traits, float]]) -> Traits:
    """What several versions, each with its weight, ask of one sequence that uses them all.

    Raises ValueError where no sequence can use them so.
    """
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    for traits, weight in parts:
        if traits.invocation:
            raise ValueError("an invoked version is used alone")
        if weight != 1 and (traits.lead or not traits.additive):
            raise ValueError("what is not added up has no weight")
    if sum(traits.lead > 0 for traits, _ in parts) > 1:
        raise ValueError("one version may stand before a prompt")
    if sum(not traits.additive for traits, _ in parts) > 1:
        raise ValueError("one version may do more than add")
    return Traits(
        embeddings=sum(traits.embeddings for traits, _ in parts),
        prefix=sum(traits.prefix for traits, _ in parts),
        additive=all(traits.additive for traits, _ in parts),
    )


def last_occurrence(tokens: tuple[int, ...], part: tuple[int, ...]) -> int | None:
    """Where `part`, which is not empty, begins for the last time in `tokens`; None: nowhere."""
    starts = range(len(tokens) - len(part), -1, -1)
    return next((at for at in starts if tokens[at : at + len(part)] == part), None)

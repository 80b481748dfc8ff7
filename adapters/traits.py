"""What a version asks of the sequences that use it, beside operations on their rows. No tensors."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traits:
    """How positions and rows of a sequence differ from the base's.

    embeddings: virtual tokens before the prompt, computed from embeddings that the version brings
    prefix: positions before the prompt whose keys and values the version brings
    invocation: token ids; rows before their last occurrence in the prompt are the base's, which
        are all rows where they do not occur. Empty: all rows are the version's
    """

    embeddings: int = 0
    prefix: int = 0
    invocation: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.embeddings and self.prefix:
            raise ValueError("a version has either virtual tokens or a prefix")

    @property
    def lead(self) -> int:
        """Positions before the prompt's first token."""
        return self.embeddings + self.prefix


PLAIN = Traits()


def last_occurrence(tokens: tuple[int, ...], part: tuple[int, ...]) -> int | None:
    """Where `part`, which is not empty, begins for the last time in `tokens`; None: nowhere."""
    starts = range(len(tokens) - len(part), -1, -1)
    return next((at for at in starts if tokens[at : at + len(part)] == part), None)

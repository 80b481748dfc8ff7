"""Where the end of a growing token sequence stood before in it. Knows token ids only.

Lookup of the prompt and of the answer so far in place of a draft model (Saxena, "Prompt Lookup
Decoding", 2023), with the chains of LZ77 compressors: each pair of tokens leads to its latest
occurrence, each occurrence to the one before.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 6
_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Match:
    """The last `length` tokens of a sequence also end at `end`, an index into it."""

    length: int
    end: int

    def continuation(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """The `count` tokens that came after the earlier occurrence.

        Where that reaches the sequence's end, it goes on as if the sequence repeated itself.
        """
        period = len(tokens) - self.end
        return tuple(tokens[self.end + at % period] for at in range(count))


class NgramIndex:
    """All pairs of neighbours in the tokens that were followed; about 150 bytes a token."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}  # where a pair ended last, by the pair
        self._before = array("i", (0,))  # by a pair's end: where the same pair ended before, or 0

    def follow(self, tokens: Sequence[int], most: int) -> bool:
        """Takes in up to `most` of the tokens that were appended; returns whether that was all."""
        latest, before = self._latest, self._before
        first = len(before)
        stop = min(len(tokens) + 1, first + most)
        for end in range(first, stop):
            pair = tokens[end - 2] << 32 | tokens[end - 1] if end > 1 else -1
            before.append(latest.get(pair, 0))
            latest[pair] = end
        return stop > len(tokens)

    def find(self, tokens: Sequence[int]) -> Match | None:
        """The longest earlier match of the end of `tokens`, of equally long ones the latest.

        Sought among the latest 16 places where its last two tokens stood; lengths above 6 count as
        6. `tokens` must have been followed to the end.
        """
        size = len(tokens)
        best, end = 0, self._before[size]
        best_end = end
        for _ in range(_CANDIDATES):
            if not end:
                break
            length = 2
            while (
                length < min(LONGEST, end) and tokens[end - 1 - length] == tokens[size - 1 - length]
            ):
                length += 1
            if length > best:
                best, best_end = length, end
                if length == LONGEST:
                    break
            end = self._before[end]
        return Match(best, best_end) if best else None

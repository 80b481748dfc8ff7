"""Drafts where a real engine would not make them: as many as chance will have, right or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest

from weft.server.engine.engine import Engine
from weft.server.engine.history import History
from weft.server.engine.speculation import Offer, Speculation


class Reckless(Speculation):
    """Checks any number of the drafts that there are, whatever they cost."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random

    def wants(self, sequences: int) -> bool:
        return True

    def allot(self, sequences: int, offers: Sequence[Offer], room: int) -> list[int]:
        counts = []
        for offer in offers:
            counts.append(self._random.randint(0, max(min(offer.drafts, room), 0)))
            room -= counts[-1]
        return counts


@dataclass(frozen=True)
class Hearsay:
    """In place of a match: what is said to come next."""

    tokens: tuple[int, ...]
    length: int = 3

    def continuation(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        return self.tokens[:count]


def make_reckless(engine: Engine, random: Random) -> None:
    """From now on the engine drafts as it comes."""
    engine.scheduler.drafting.speculation = Reckless(random)


def foretell(
    patch: pytest.MonkeyPatch, answers: Sequence[Sequence[int]], random: Random, truth: float
) -> None:
    """Lets drafts be what a prompt with its answer says next, each one with probability `truth`."""

    def look(self: History, tokens: Sequence[int]) -> Hearsay:
        known = len(tokens)
        fits = (answer for answer in answers if list(answer[:known]) == list(tokens))
        rest = [*next(fits, ())[known:], *random.choices(range(5, 500), k=16)]
        told = Hearsay(
            tuple(token if random.random() < truth else random.randrange(500) for token in rest)
        )
        self.match = told  # type: ignore[assignment]
        return told

    patch.setattr(History, "look", look)

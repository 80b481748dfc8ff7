"""All sides on the same requests in turns, so that a noisy moment hits each of them.

All stay loaded, and only one is asked at a time; what the idle ones take of the processor is noted.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from serving.request import Request

from sides.side import Answers, Missing, NotServed, Side

Mixes = Mapping[str, Sequence[Request]]


@dataclass(frozen=True)
class Rules:
    """repeats: runs of each mix on each side   long: a run of more seconds is not repeated

    checked, check_tokens: answers of each mix that are compared first, and how long they are
    warm_tokens: of each answer before anything is timed
    """

    repeats: int
    long: float
    checked: int = 8
    check_tokens: int = 8
    warm_tokens: int = 2


@dataclass
class Cell:
    """One side on one mix.

    agrees: share of the reference's tokens that it gave before the first other one
    not_served: why it cannot answer these requests
    """

    runs: list[Answers] = field(default_factory=list)
    agrees: float | None = None
    not_served: str | None = None

    @property
    def failed(self) -> str | None:
        """Why a run is not whole; None if all are."""
        return next((run.failed for run in self.runs if run.failed), None)

    @property
    def speeds(self) -> list[float]:
        """Tokens per second of each run."""
        return [run.tokens / run.seconds for run in self.runs]

    @property
    def speed(self) -> float | None:
        """The median of whole runs; None where not all are whole."""
        return None if self.failed or not self.runs else statistics.median(self.speeds)


@dataclass
class Entry:
    """One side in the table.

    missing: why it did not take part   idle: largest share of a core while another one was asked
    """

    side: str
    version: str | None = None
    missing: str | None = None
    cells: dict[str, Cell] = field(default_factory=dict)
    idle: float = 0.0


def contest(
    sides: Sequence[Side], mixes: Mixes, rules: Rules, on_step: Callable[[str], None]
) -> list[Entry]:
    """Starts all sides, checks their answers against the first one's, times them, stops them.

    on_step: told of what is done next, `steps(...)` times at most
    """
    entries = {side.name: Entry(side.name) for side in sides}
    with ExitStack() as running:
        present: list[Side] = []
        for side in sides:
            on_step(f"{side.name}: start")
            running.callback(side.stop)
            try:
                entries[side.name].version = side.start()
            except Missing as missing:
                entries[side.name].missing = str(missing)
            else:
                present.append(side)
        table = Table(present, entries, mixes, rules, on_step)
        table.check()
        for turn in range(rules.repeats):
            table.turn(turn)
    return list(entries.values())


def steps(sides: int, mixes: int, rules: Rules) -> int:
    """How many steps a contest has at most."""
    return sides + sides * mixes * (1 + rules.repeats)


class Table:
    """The cells of the sides that are there, and how each is filled."""

    def __init__(
        self,
        sides: Sequence[Side],
        entries: Mapping[str, Entry],
        mixes: Mixes,
        rules: Rules,
        on_step: Callable[[str], None],
    ) -> None:
        self._sides = sides
        self._entries = entries
        self._mixes = mixes
        self._rules = rules
        self._on_step = on_step

    def check(self) -> None:
        """Compares first tokens with the first side's, and has each side compute all mixes once."""
        for mix, requests in self._mixes.items():
            checked = _shortened(requests[: self._rules.checked], self._rules.check_tokens)
            expected: list[tuple[int, ...]] | None = None
            for side in self._sides:
                self._on_step(f"{side.name}: check, {mix}")
                cell = self._entries[side.name].cells.setdefault(mix, Cell())
                try:
                    found = side.tokens(checked)
                    side.answer(_shortened(requests, self._rules.warm_tokens))
                except NotServed as reason:
                    cell.not_served = str(reason)
                    continue
                expected = expected or found
                cell.agrees = agreeing(found, expected)

    def turn(self, number: int) -> None:
        """Each mix on each side once; who begins changes from turn to turn."""
        first = number % len(self._sides)
        for mix, requests in self._mixes.items():
            for side in [*self._sides[first:], *self._sides[:first]]:
                self._on_step(f"{side.name}: {mix}, turn {number + 1}")
                cell = self._entries[side.name].cells[mix]
                if cell.not_served or cell.failed or self._was_long(cell):
                    continue
                before = dict(self._cpu_seconds(others=side))
                run = side.answer(requests)
                cell.runs.append(run)
                for name, seconds in self._cpu_seconds(others=side):
                    entry = self._entries[name]
                    entry.idle = max(entry.idle, (seconds - before[name]) / run.seconds)

    def _was_long(self, cell: Cell) -> bool:
        return any(run.seconds > self._rules.long for run in cell.runs)

    def _cpu_seconds(self, others: Side) -> Iterator[tuple[str, float]]:
        return ((side.name, side.cpu_seconds()) for side in self._sides if side is not others)


def agreeing(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    """Share of the expected tokens that were found before the first other one of each answer."""
    equal = 0
    for mine, reference in zip(found, expected, strict=True):
        for left, right in zip(mine, reference, strict=False):
            if left != right:
                break
            equal += 1
    return equal / sum(map(len, expected))


def _shortened(requests: Sequence[Request], tokens: int) -> list[Request]:
    return [replace(request, max_tokens=tokens) for request in requests]

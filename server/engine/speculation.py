"""How many drafted tokens a step of decodes should check: as many as make tokens come faster.

A draft costs a row of the step and saves a step where it is right. Both are measured: what rows
add to a step of so many sequences, and how often drafts are right. Knows numbers only.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

MOST_DRAFTS = 16
"""Of one sequence in a step."""
_LADDER = sorted({steps << power for power in range(12) for steps in (1, 2, 3)})
"""Numbers of drafts in a step: few, so that what each of them costs is soon known."""
_MARGIN = 1.03
_PROBES = (2, 8)
_SHARE = 0.01
_PURSE_STEPS = 8
_REFRESH = 64
_RETRY = 128
_PLAIN_LIFETIME = 256
_ADDED_LIFETIME = 4096
_FORGET = 0.995
_HOPE = 0.25


class Recent:
    """The usual one of the latest few measurements, since disturbances only ever add to some.

    at: when the latest was made; ages are numbers of steps
    """

    def __init__(self, lifetime: int) -> None:
        self.at = 0
        self._lifetime = lifetime
        self._values: deque[float] = deque(maxlen=5)
        self._usual: float | None = None

    def add(self, value: float, now: int) -> None:
        """Takes a measurement in; those before it are dropped if the latest of them is too old."""
        if now - self.at > self._lifetime:
            self._values.clear()
        self._values.append(value)
        self.at = now
        count = len(self._values)
        self._usual = sorted(self._values)[(count - 1) // 2] if count > 1 else None

    def usual(self, now: int) -> float | None:
        """None while there is only one, whose shape of step was new to the device, or old ones."""
        return None if now - self.at > self._lifetime else self._usual


class StepCosts:
    """Seconds of decode steps: plain ones by number of sequences, and what drafts add to those."""

    def __init__(self) -> None:
        self.now = 0
        self._plain: dict[int, Recent] = {}
        self._added: dict[int, dict[int, Recent]] = {}  # by sequences, roughly, and drafts

    def observe(self, sequences: int, drafts: int, seconds: float) -> None:
        """Takes in how long a step took."""
        self.now += 1
        if not drafts:
            self._plain.setdefault(sequences, Recent(_PLAIN_LIFETIME)).add(seconds, self.now)
        elif (plain := self.plain(sequences)) is not None:
            points = self._added.setdefault(sequences.bit_length(), {})
            points.setdefault(drafts, Recent(_ADDED_LIFETIME)).add(seconds - plain, self.now)

    def plain(self, sequences: int) -> float | None:
        """Seconds of a step without drafts; None until some were measured."""
        recent = self._plain.get(sequences)
        return recent.usual(self.now) if recent else None

    def is_due(self, sequences: int) -> bool:
        """Whether it is time for a step without drafts, so that its cost stays known."""
        recent = self._plain.get(sequences)
        return recent is None or self.now - recent.at >= _REFRESH

    def added(self, sequences: int) -> list[tuple[int, float]]:
        """Numbers of drafts, ascending, with the seconds that they were seen to add."""
        points = self._added.get(sequences.bit_length(), {})
        known = ((drafts, recent.usual(self.now)) for drafts, recent in sorted(points.items()))
        return [(drafts, max(value, 0.0)) for drafts, value in known if value is not None]


def interpolate(points: Sequence[tuple[int, float]], at: int) -> float:
    """The height at `at` of a line through `points`, which ascend and are at least one.

    Before the first point it is as high as there; after the last one it goes on as steeply as from
    the first to the last, or, where there is only one, in proportion.
    """
    first, last = points[0], points[-1]
    if at <= first[0]:
        return first[1]
    if at > last[0]:
        start, height = first if len(points) > 1 else (0, 0.0)
        slope = max(last[1] - height, 0.0) / (last[0] - start)
        return last[1] + slope * (at - last[0])
    index = next(index for index, (drafts, _) in enumerate(points) if drafts >= at)
    (left, low), (right, high) = points[index - 1 : index + 1]
    return low + (high - low) * (at - left) / (right - left)


@dataclass(slots=True)
class Tally:
    """How often a draft was right after those before it were. What is long ago counts less."""

    keep: float
    right: float = 0.0
    wrong: float = 0.0
    at: int = 0

    def observe(self, drafted: int, accepted: int, now: int) -> None:
        """Of `drafted` tokens in a row the first `accepted` were right."""
        faded = self.keep ** (now - self.at)
        self.right = self.right * faded + accepted
        self.wrong = self.wrong * faded + (accepted < drafted)
        self.at = now

    def rate(self, expected: float, now: int) -> float:
        """Its share of right ones, which is as `expected` where it has seen nothing of late."""
        faded = self.keep ** (now - self.at)
        return (self.right * faded + expected) / (self.weight(now) + 1.0)

    def weight(self, now: int) -> float:
        """How many it remembers."""
        return (self.right + self.wrong) * self.keep ** (now - self.at)


@dataclass(slots=True)
class Acceptance:
    """How often drafts were right, by the length of the match that they came from."""

    keep: float
    tallies: dict[int, Tally] = field(default_factory=dict)

    def observe(self, length: int, drafted: int, accepted: int, now: int) -> None:
        """See `Tally.observe`."""
        self.tallies.setdefault(length, Tally(self.keep)).observe(drafted, accepted, now)

    def rate(self, length: int, expected: float, now: int) -> float:
        """See `Tally.rate`."""
        tally = self.tallies.get(length)
        return tally.rate(expected, now) if tally else expected

    def hope(self, length: int, now: int) -> float:
        """How much more than its `rate` it may be, going by how little was seen."""
        tally = self.tallies.get(length)
        return _HOPE / (1.0 + tally.weight(now)) ** 0.5 if tally else 0.0


@dataclass(frozen=True, slots=True)
class Offer:
    """Up to `drafts` drafts of one sequence, each right with `rate` if those before it are."""

    rate: float
    drafts: int


class Speculation:
    """Decides from measured costs and successes, and never loses more than a share of the time.

    What looking for drafts and checking them costs is paid from a purse that holds seconds: at
    first, and at most, those of eight steps. It gets a hundredth of the time and all that drafts
    save, and when it is empty there are none.
    """

    def __init__(self) -> None:
        self._costs = StepCosts()
        self._purse: float | None = None
        self._tried = 0
        self._everywhere = Acceptance(_FORGET)

    def wants(self, sequences: int) -> bool:
        """Whether drafts for a step of so many sequences are worth looking for."""
        plain = self._costs.plain(sequences)
        if not plain or (self._purse or 0.0) < 0 or self._costs.is_due(sequences):
            return False
        points = self._costs.added(sequences)
        certain = sequences * MOST_DRAFTS
        return (
            len(points) < len(_PROBES)
            or self._is_due
            or any(
                (sequences + drafts) * plain > sequences * (plain + added) * _MARGIN
                for drafts, added in (*points, (certain, interpolate(points, certain)))
            )
        )

    def rate(self, own: Acceptance, length: int) -> float:
        """How likely a draft from a match of this length is right, in a sequence that knows `own`.

        Sequences that know nothing go by what others saw, and those by the toss of a coin; who had
        bad luck hopes for better.
        """
        now = self._costs.now
        found = own.rate(length, self._everywhere.rate(length, 0.5, now), now)
        return min(found + own.hope(length, now), 1.0)

    def allot(self, sequences: int, offers: Sequence[Offer], room: int) -> list[int]:
        """How many drafts of each offer to check in a step of `sequences`, at most `room`.

        The likeliest ones, as many as give the most tokens a second. While that is not known, two
        and then eight, from which it can be told what any number costs; and two from time to time.
        """
        ranked = sorted(
            (-chance, index)
            for index, offer in enumerate(offers)
            for chance in accumulate([offer.rate] * offer.drafts, mul)
        )[: max(room, 0)]
        best = self._best(sequences, [-chance for chance, _ in ranked])
        counts = [0] * len(offers)
        for _, index in ranked[: best or self._probe(sequences)]:
            counts[index] += 1
        if best or self._is_due:
            self._tried = self._costs.now
        return counts

    @property
    def _is_due(self) -> bool:
        """Whether there were no drafts for so long that what is known of them may be wrong."""
        return self._costs.now - self._tried >= _RETRY

    def _best(self, sequences: int, chances: Sequence[float]) -> int:
        """How many of the descending `chances` give the most tokens a second; 0 if not known."""
        points, plain = self._costs.added(sequences), self._costs.plain(sequences)
        if len(points) < len(_PROBES) or not plain:
            return 0
        gained = [0.0, *accumulate(chances)]
        best, highest = 0, sequences / plain * _MARGIN
        for drafts in _LADDER:
            if drafts > len(chances):
                break
            speed = (sequences + gained[drafts]) / (plain + interpolate(points, drafts))
            if speed > highest:
                best, highest = drafts, speed
        return best

    def _probe(self, sequences: int) -> int:
        """How many drafts to try though they may not pay, if the purse holds what they cost."""
        points = self._costs.added(sequences)
        if len(points) < len(_PROBES):
            probe = _PROBES[len(points)]
        else:
            probe = _PROBES[0] if self._is_due else 0
        cost = interpolate(points, probe) if points else 0.0
        return probe if cost <= (self._purse or 0.0) else 0

    def learn(self, own: Acceptance, length: int, drafted: int, accepted: int) -> None:
        """Takes in how many of a sequence's drafts were right."""
        now = self._costs.now
        own.observe(length, drafted, accepted, now)
        self._everywhere.observe(length, drafted, accepted, now)

    def observe(
        self, sequences: int, drafted: int, accepted: int, *, seconds: float, looking: float
    ) -> None:
        """Takes in a step: how long it took, and how long it took before to look for drafts."""
        self._costs.observe(sequences, drafted, seconds)
        plain = self._costs.plain(sequences) or seconds
        most = _PURSE_STEPS * plain
        saved = 0.0
        if drafted:
            # What this step took alone may come from a disturbance.
            points = self._costs.added(sequences)
            usual = interpolate(points, drafted) if points else most
            saved = accepted * plain / sequences - min(seconds - plain, usual)
        purse = most if self._purse is None else self._purse
        self._purse = min(purse + saved + _SHARE * seconds - looking, most)

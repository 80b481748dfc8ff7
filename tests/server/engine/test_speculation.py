"""Drafts are checked where that is faster on the machine at hand, and cost next to nothing else

A machine is a function from sequences and drafts to the seconds of a step; time is virtual.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.server.engine.speculation import (
    MOST_DRAFTS,
    Acceptance,
    Offer,
    Recent,
    Speculation,
    Tally,
    interpolate,
)

Machine = Callable[[int, int], float]
STEPS = 1500
PROMISE = 1 - 0.01 - 8 / STEPS  # a hundredth of the time and eight steps are at risk


def reads_weights(sequences: int, drafts: int) -> float:
    """Rows are nearly free: 16 of them cost as much as what one step reads."""
    return 1.0 + (sequences + drafts) / 16


def computes(sequences: int, drafts: int) -> float:
    """Each row costs the same."""
    return (sequences + drafts) / 8


def steep_start(sequences: int, drafts: int) -> float:
    """The first draft costs much, further ones nothing."""
    return 1.0 + 0.6 * (drafts > 0)


@dataclass
class Life:
    """Sequences that decode on a machine, each with a rate at which its drafts are right."""

    machine: Machine
    rates: list[float]
    random: Random = field(default_factory=lambda: Random(0))
    looking: float = 0.0
    noise: float = 0.0
    found: float = 1.0
    seconds: float = 0.0
    tokens: int = 0
    drafted: int = 0
    speculation: Speculation = field(default_factory=Speculation)

    def __post_init__(self) -> None:
        self.own = [Acceptance(0.97) for _ in self.rates]

    def step(self) -> None:
        count, looking = len(self.rates), 0.0
        drafts = [0] * count
        if self.speculation.wants(count):
            looking = self.looking
            offers = [self._offer(own) for own in self.own]
            drafts = self.speculation.allot(count, offers, room=1000)
            assert all(n <= o.drafts for n, o in zip(drafts, offers, strict=True))
        accepted = 0
        for own, rate, drafted in zip(self.own, self.rates, drafts, strict=True):
            if drafted:
                right = 0
                while right < drafted and self.random.random() < rate:
                    right += 1
                self.speculation.learn(own, 3, drafted, right)
                accepted += right
        disturbance = 3.0 if self.random.random() < self.noise / 9 else self.noise
        seconds = self.machine(count, sum(drafts))
        seconds *= 1 + disturbance * self.random.random()
        self.speculation.observe(count, sum(drafts), accepted, seconds=seconds, looking=looking)
        self.seconds += seconds + looking
        self.tokens += count + accepted
        self.drafted += sum(drafts)

    def _offer(self, own: Acceptance) -> Offer:
        found = self.random.random() < self.found
        return Offer(self.speculation.rate(own, 3), MOST_DRAFTS * found)

    def speed(self, steps: int = STEPS) -> float:
        """Tokens a second of so many further steps."""
        seconds, tokens = self.seconds, self.tokens
        for _ in range(steps):
            self.step()
        return (self.tokens - tokens) / (self.seconds - seconds)


def plain_speed(machine: Machine, sequences: int) -> float:
    return sequences / machine(sequences, 0)


def best_speed(machine: Machine, sequences: int, rate: float) -> float:
    """With as many drafts for each sequence as is best for all."""
    return max(
        sequences * sum(rate**n for n in range(drafts + 1)) / machine(sequences, sequences * drafts)
        for drafts in range(MOST_DRAFTS + 1)
    )


@pytest.mark.parametrize("machine", [reads_weights, computes, steep_start])
@pytest.mark.parametrize("sequences", [1, 3, 12])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.8, 0.97])
def test_it_comes_near_the_best_constant_choice(
    machine: Machine, sequences: int, rate: float
) -> None:
    speed = Life(machine, [rate] * sequences).speed()
    assert speed >= 0.9 * best_speed(machine, sequences, rate)
    assert speed >= PROMISE * plain_speed(machine, sequences)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sequences", [1, 12])
def test_where_rows_are_dear_there_are_hardly_any_drafts(sequences: int, rate: float) -> None:
    life = Life(computes, [rate] * sequences)
    speed = life.speed()
    assert speed >= PROMISE * plain_speed(computes, sequences)
    assert life.drafted < 0.05 * life.tokens


@pytest.mark.parametrize("sequences", [1, 32])
def test_looking_for_what_is_never_there_is_bounded_too(sequences: int) -> None:
    life = Life(reads_weights, [0.0] * sequences, found=0.0)
    life.looking = 0.1 * reads_weights(sequences, 0)
    assert life.speed() >= PROMISE * plain_speed(reads_weights, sequences)


@pytest.mark.parametrize("seed", range(5))
def test_noise_costs_little(seed: int) -> None:
    def pair(rate: float) -> tuple[float, float]:
        noisy = Life(reads_weights, [rate] * 2, Random(seed), noise=0.3)
        deaf = Life(reads_weights, [rate] * 2, Random(seed), noise=0.3, found=0.0)
        return noisy.speed(), deaf.speed()

    gained, plain = pair(0.9)
    assert gained > 2.5 * plain
    wasted, plain = pair(0.0)
    assert wasted > 0.97 * plain


def test_drafts_come_back_when_the_text_begins_to_repeat_itself() -> None:
    life = Life(reads_weights, [0.0])
    life.speed()
    life.rates = [0.95]
    life.speed(300)
    assert life.speed(300) > 3 * plain_speed(reads_weights, 1)
    life.rates = [0.0]
    life.speed(50)
    assert life.speed() > PROMISE * plain_speed(reads_weights, 1)


def test_drafts_come_back_when_rows_have_become_cheap() -> None:
    life = Life(computes, [0.95])
    life.speed(6000)
    life.machine = reads_weights
    life.speed(6000)
    assert life.speed(300) > 3 * plain_speed(reads_weights, 1)


def test_the_likeliest_drafts_are_taken_whosever_they_are() -> None:
    life = Life(reads_weights, [0.95, 0.95, 0.05, 0.05])
    life.speed(1000)
    offers = [Offer(0.9, 16), Offer(0.9, 3), Offer(0.2, 16), Offer(0.0, 0)]
    first, second, third, none = life.speculation.allot(4, offers, room=1000)
    assert (second, none) == (3, 0)
    assert first > 3 > third
    assert sum(life.speculation.allot(4, offers, room=2)) == 2
    assert sum(life.speculation.allot(4, offers, room=0)) == 0


def test_nobody_knows_more_than_was_measured() -> None:
    speculation = Speculation()
    assert not speculation.wants(1)  # not even what a step costs
    for _ in range(2):
        assert not speculation.wants(1)
        speculation.observe(1, 0, 0, seconds=1.0, looking=0.0)
    assert speculation.wants(1)
    assert not speculation.wants(2)
    assert speculation.allot(1, [Offer(0.5, 16)], room=99) == [2]
    assert speculation.allot(1, [Offer(0.5, 1)], room=99) == [1]


def test_a_clock_that_stands_still_is_no_reason_to_fail() -> None:
    assert Life(lambda sequences, drafts: 0.0, [0.5]).drafted == 0
    life = Life(lambda sequences, drafts: 0.0, [0.5])
    for _ in range(20):
        life.step()
    assert life.drafted == 0


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 10)), min_size=1, unique_by=lambda p: p[0]),
    st.integers(1, 100),
)
def test_interpolation_stays_between_its_neighbours(
    points: list[tuple[int, float]], at: int
) -> None:
    points.sort()
    value = interpolate(points, at)
    before = [height for drafts, height in points if drafts <= at][-1:] or [points[0][1]]
    after = [height for drafts, height in points if drafts >= at][:1]
    if after:
        assert min(before + after) - 1e-9 <= value <= max(before + after) + 1e-9
    else:
        assert value >= points[-1][1]
    assert [interpolate(points, drafts) for drafts, _ in points] == pytest.approx(
        [height for _, height in points]
    )


def test_beyond_what_was_measured_a_line_goes_on() -> None:
    assert interpolate([(2, 1.0)], 8) == 4.0
    assert interpolate([(2, 1.0)], 1) == 1.0
    assert interpolate([(2, 1.0), (4, 1.5)], 8) == 2.5
    assert interpolate([(2, 1.0), (4, 0.5)], 8) == 0.5


def test_a_tally_forgets_and_falls_back_on_what_is_expected() -> None:
    tally = Tally(keep=0.9)
    assert tally.rate(0.5, now=0) == 0.5
    for now in range(30):
        tally.observe(drafted=4, accepted=4, now=now)
    assert tally.rate(0.5, now=30) > 0.95
    for now in range(30, 90):
        tally.observe(drafted=4, accepted=0, now=now)
    assert tally.rate(0.5, now=90) < 0.1
    assert tally.rate(0.5, now=200) == pytest.approx(0.5, abs=0.01)


def test_the_usual_measurement_is_not_a_disturbed_one() -> None:
    recent = Recent(lifetime=10)
    recent.add(9.0, now=1)
    assert recent.usual(1) is None
    recent.add(1.0, now=2)
    assert recent.usual(2) == 1.0
    for now, value in enumerate((1.1, 30.0, 1.2), start=3):
        recent.add(value, now)
    assert recent.usual(5) == 1.2
    assert recent.usual(15) == 1.2
    assert recent.usual(16) is None
    recent.add(2.0, now=16)
    assert recent.usual(16) is None

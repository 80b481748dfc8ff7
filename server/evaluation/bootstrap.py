"""How sure averages over examples are, and their differences. Knows arrays of numbers only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that holds the true value with a probability of CONFIDENCE."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Average:
    """Of values, each with a weight: the sum of the former over the sum of the latter.

    values, weights: [examples]; both 0 for an example that does not count
    """

    values: Numbers
    weights: Numbers


class Bootstrap:
    """RESAMPLES draws of as many examples as there are, with replacement.

    Every average is taken over the same draws. What makes an example easy or hard then cancels in a
    difference of two models, as it must where both answered the same examples.
    """

    def __init__(self, examples: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        chances = np.full(examples, 1 / examples)
        self._times = random.multinomial(examples, chances, size=RESAMPLES).astype(np.float64)

    def interval(self, average: Average) -> Interval:
        """An average's interval."""
        return _interval(_value(average), self._drawn(average))

    def difference(self, average: Average, reference: Average) -> Interval:
        """How much larger an average is than another one of the same examples."""
        drawn = self._drawn(average) - self._drawn(reference)
        return _interval(_value(average) - _value(reference), drawn)

    def _drawn(self, average: Average) -> Numbers:
        """The average of each draw that has any weight."""
        weights = self._times @ average.weights
        with np.errstate(invalid="ignore"):
            drawn: Numbers = (self._times @ average.values) / weights
        return drawn


def _value(average: Average) -> float:
    return float(average.values.sum() / average.weights.sum())


def _interval(value: float, drawn: Numbers) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, (tail, 1 - tail))
    return Interval(value, float(low), float(high))

"""A model's metrics over examples of one kind, beside the base's on the same examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weft.server.evaluation.bootstrap import Average, Bootstrap, Interval
from weft.server.evaluation.outcome import Outcome

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Measure(Interval):
    """One metric of one model; `difference` from the base, None for the base itself."""

    difference: Interval | None = None


@dataclass(frozen=True)
class Scores:
    """One model on the examples of one kind.

    loss: nats a token, over all tokens of all completions   perplexity: its exponential
    the others: share of the examples that ask for it; None where none does
    """

    examples: int
    tokens: int
    loss: Measure
    perplexity: Interval
    exact_match: Measure | None
    regex: Measure | None
    json: Measure | None


def scores(
    outcomes: Mapping[str, Sequence[Outcome]], base: str, seed: int
) -> dict[str, Scores | None]:
    """The scores of each model, all of which had the same examples; None where there are none."""
    if not outcomes[base]:
        return dict.fromkeys(outcomes)
    bootstrap = Bootstrap(len(outcomes[base]), seed)
    return {
        model: _scores(bootstrap, found, None if model == base else outcomes[base])
        for model, found in outcomes.items()
    }


def _scores(
    bootstrap: Bootstrap, found: Sequence[Outcome], base: Sequence[Outcome] | None
) -> Scores:
    def measure(average: Callable[[Sequence[Outcome]], Average]) -> Measure | None:
        own = average(found)
        if not own.weights.any():
            return None
        interval = bootstrap.interval(own)
        difference = None if base is None else bootstrap.difference(own, average(base))
        return Measure(interval.value, interval.low, interval.high, difference)

    loss = measure(_loss)
    assert loss is not None
    return Scores(
        examples=len(found),
        tokens=sum(outcome.tokens for outcome in found),
        loss=loss,
        perplexity=Interval(*map(_perplexity, (loss.value, loss.low, loss.high))),
        exact_match=measure(lambda of: _share([outcome.exact_match for outcome in of])),
        regex=measure(lambda of: _share([outcome.regex for outcome in of])),
        json=measure(lambda of: _share([outcome.json for outcome in of])),
    )


def _perplexity(loss: float) -> float:
    return float(np.exp(min(loss, _LARGEST_EXPONENT)))


def _loss(outcomes: Sequence[Outcome]) -> Average:
    return Average(
        np.array([outcome.loss for outcome in outcomes]),
        np.array([float(outcome.tokens) for outcome in outcomes]),
    )


def _share(checks: Sequence[bool | None]) -> Average:
    return Average(
        np.array([float(check or False) for check in checks]),
        np.array([float(check is not None) for check in checks]),
    )

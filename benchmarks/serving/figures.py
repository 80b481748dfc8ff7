"""What a run's outcomes come to: rates, latencies and their percentiles, promises kept."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from serving.request import Outcome, Outcomes


@dataclass(frozen=True)
class Promise:
    """When an answer is soon enough: S-LoRA's service level objective is a first token in 6 s.

    first_token: seconds, at most   inter_token: seconds on average within one answer, at most
    """

    first_token: float = 6.0
    inter_token: float | None = None

    @property
    def words(self) -> str:
        """As people say it."""
        gap = self.inter_token
        rest = "" if gap is None else f", then a token each {gap:g} s on average"
        return f"first token within {self.first_token:g} s{rest}"

    def kept(self, outcome: Outcome) -> bool:
        """Whether a request was answered so; one that failed was not."""
        if outcome.error is not None or outcome.first_token > self.first_token:
            return False
        return self.inter_token is None or mean_gap(outcome) <= self.inter_token


@dataclass(frozen=True)
class Spread:
    """Of some measured seconds; percentiles are interpolated linearly between two of them."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """None where there are none."""
        if not seconds:
            return None
        p50, p90, p99 = np.percentile(seconds, (50, 90, 99)).tolist()
        return cls(len(seconds), float(np.mean(seconds)), p50, p90, p99, max(seconds))


@dataclass(frozen=True)
class Figures:
    """A run, or one kind of its requests.

    seconds: of the whole run; rates are what was answered within it
    answered: all but those with errors   short: of them, those with fewer tokens than asked for
    first_token, inter_token, whole: seconds as clients see them, from when a request was due;
        tokens that come in one chunk are 0 apart
    mean_gap: of each answer of several tokens; no grouping of tokens makes it smaller
    late: how much later than due the generator sent the requests; it is part of the above
    kept: share of all requests that were answered as promised
    cached: share of prompt tokens that the server says it had in its cache
    running, adapters: how many answers were under way at a time, and of how many different adapters
    counted: the server told how many tokens each chunk has
    """

    requests: int
    answered: int
    short: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    first_token: Spread | None
    inter_token: Spread | None
    mean_gap: Spread | None
    whole: Spread | None
    late: Spread | None
    kept: float
    cached: float
    running: float
    adapters: float
    counted: bool

    @classmethod
    def of(cls, outcomes: Outcomes, promise: Promise) -> "Figures":
        """All figures of a run."""
        each = outcomes.each
        answered = [outcome for outcome in each if outcome.error is None]
        tokens = sum(len(outcome.arrivals) for outcome in answered)
        prompts = sum(outcome.prompt_tokens for outcome in answered)
        running, adapters = at_once(answered)
        return cls(
            requests=len(each),
            answered=len(answered),
            short=sum(len(outcome.arrivals) < outcome.request.max_tokens for outcome in answered),
            errors=dict(Counter(outcome.error for outcome in each if outcome.error)),
            seconds=outcomes.seconds,
            requests_per_second=len(answered) / outcomes.seconds,
            tokens_per_second=tokens / outcomes.seconds,
            first_token=Spread.of([outcome.first_token for outcome in answered]),
            inter_token=Spread.of([gap for outcome in answered for gap in outcome.gaps]),
            mean_gap=Spread.of([mean_gap(one) for one in answered if len(one.arrivals) > 1]),
            whole=Spread.of([outcome.whole for outcome in answered]),
            late=Spread.of([outcome.late for outcome in each]),
            kept=sum(map(promise.kept, each)) / max(len(each), 1),
            cached=sum(outcome.cached_tokens for outcome in answered) / max(prompts, 1),
            running=running,
            adapters=adapters,
            counted=all(outcome.counted for outcome in answered),
        )

    @classmethod
    def by_kind(cls, outcomes: Outcomes, promise: Promise) -> "dict[str, Figures]":
        """Those of each kind of requests, by name; none where there is one kind only."""
        kinds = sorted({outcome.request.kind for outcome in outcomes.each})
        if len(kinds) < 2:
            return {}
        parts = {
            kind: tuple(one for one in outcomes.each if one.request.kind == kind) for kind in kinds
        }
        return {k: cls.of(Outcomes(outcomes.seconds, each), promise) for k, each in parts.items()}


def mean_gap(outcome: Outcome) -> float:
    """Seconds between an answer's tokens on average; 0 where it has one only."""
    arrivals = outcome.arrivals
    return (arrivals[-1] - arrivals[0]) / max(len(arrivals) - 1, 1)


def at_once(
    outcomes: Sequence[Outcome], size: Callable[[str], float] = lambda adapter: 1
) -> tuple[float, float]:
    """How many answers were under way at a time, and of how many different adapters, on average.

    An answer is under way from when it was sent; times at which none was do not count. The base is
    no adapter. size: what each adapter counts for
    """
    begins = [(outcome.sent, 1, outcome.request.adapter) for outcome in outcomes]
    ends = [(outcome.ended, -1, outcome.request.adapter) for outcome in outcomes]
    events = sorted(begins + ends, key=lambda event: event[:2])
    under_way: Counter[str | None] = Counter()
    busy = running = adapters = weight = 0.0
    for (time, change, adapter), (later, *_) in pairwise(events):
        before = adapter in under_way
        under_way[adapter] += change
        if under_way[adapter] == 0:
            del under_way[adapter]
        if adapter is not None:
            weight += size(adapter) * ((adapter in under_way) - before)
        if under_way:
            busy += later - time
            running += (later - time) * under_way.total()
            adapters += (later - time) * weight
    return (running / busy, adapters / busy) if busy else (0.0, 0.0)

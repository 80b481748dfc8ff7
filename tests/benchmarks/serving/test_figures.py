"""Figures of outcomes that are written out by hand."""

import pytest
from serving.figures import Figures, Promise, Spread, at_once, mean_gap
from serving.request import Outcome, Outcomes, Request

PROMISE = Promise(first_token=1.0, inter_token=0.5)


def outcome(
    *arrivals: float,
    due: float = 0.0,
    late: float = 0.0,
    adapter: str | None = "a",
    asked: int | None = None,
    error: str | None = None,
    kind: str = "",
    ended: float | None = None,
    tokens: tuple[int, int] = (0, 0),
) -> Outcome:
    request = Request((1,), adapter, len(arrivals) if asked is None else asked, due, kind)
    ended = ended or (arrivals[-1] if arrivals else due)
    return Outcome(
        request,
        due,
        due + late,
        ended,
        arrivals,
        prompt_tokens=tokens[0],
        cached_tokens=tokens[1],
        error=error,
    )


def test_percentiles_lie_between_values() -> None:
    spread = Spread.of([float(number) for number in range(101)])
    assert spread == Spread(count=101, mean=50.0, p50=50.0, p90=90.0, p99=99.0, max=100.0)
    two = Spread.of([3.0, 1.0])
    assert two is not None
    assert (two.p50, two.p90, two.p99) == pytest.approx((2.0, 2.8, 2.98))
    assert Spread.of([7.0]) == Spread(1, 7.0, 7.0, 7.0, 7.0, 7.0)
    assert Spread.of([]) is None


def test_latencies_count_from_when_a_request_was_due() -> None:
    figures = Figures.of(Outcomes(10.0, (outcome(2.5, 3.0, 4.0, due=2.0, late=0.25),)), PROMISE)
    assert figures.first_token is not None
    assert figures.first_token.p50 == 0.5
    assert figures.late is not None
    assert figures.late.max == 0.25
    assert figures.whole is not None
    assert figures.whole.p50 == 2.0
    assert figures.inter_token is not None
    assert (figures.inter_token.count, figures.inter_token.mean) == (2, 0.75)


def test_rates_count_what_was_answered() -> None:
    each = (outcome(1.0, 2.0), outcome(1.0, asked=3), outcome(1.0, error="connection"))
    figures = Figures.of(Outcomes(4.0, each), PROMISE)
    assert (figures.requests, figures.answered, figures.short) == (3, 2, 1)
    assert figures.errors == {"connection": 1}
    assert (figures.requests_per_second, figures.tokens_per_second) == (0.5, 0.75)


def test_a_promise_is_about_each_request() -> None:
    kept = {
        "in time": outcome(1.0, 1.25, 2.0),
        "first token late": outcome(1.25),
        "too slow": outcome(0.5, 1.5),
        "failed": outcome(0.5, error="500"),
    }
    assert [PROMISE.kept(one) for one in kept.values()] == [True, False, False, False]
    assert Promise(first_token=1.0).kept(kept["too slow"])
    figures = Figures.of(Outcomes(1.0, tuple(kept.values())), PROMISE)
    assert figures.kept == 0.25


def test_no_grouping_of_tokens_makes_the_mean_gap_smaller() -> None:
    assert mean_gap(outcome(1.0, 1.5, 2.0)) == mean_gap(outcome(1.0, 1.0, 2.0)) == 0.5
    assert mean_gap(outcome(1.0)) == 0.0


def test_how_many_are_under_way_at_a_time() -> None:
    """Two of one adapter from 0 to 2, one of another and the base from 1 to 4; a late one."""
    both = [outcome(2.0), outcome(2.0)]
    later = [outcome(4.0, due=1.0, adapter=name) for name in ("b", None)]
    last = [outcome(11.0, due=10.0)]
    running = (2 * 1 + 4 * 1 + 2 * 2 + 1) / 5
    adapters = (1 * 1 + 2 * 1 + 1 * 2 + 1) / 5
    assert at_once([*both, *later, *last]) == pytest.approx((running, adapters))
    weight = (3 * 1 + 13 * 1 + 10 * 2 + 3) / 5
    assert at_once([*both, *later, *last], {"a": 3, "b": 10}.__getitem__)[1] == weight
    assert at_once([]) == (0.0, 0.0)


def test_cached_tokens_are_a_share_of_all_prompt_tokens() -> None:
    each = (outcome(1.0, tokens=(30, 20)), outcome(1.0, tokens=(10, 0)))
    assert Figures.of(Outcomes(1.0, each), PROMISE).cached == 0.5


def test_kinds_of_requests_have_figures_of_their_own() -> None:
    each = (outcome(1.0, kind="cold"), outcome(0.5, kind="warm"), outcome(0.25, kind="warm"))
    kinds = Figures.by_kind(Outcomes(2.0, each), PROMISE)
    assert {kind: figures.requests for kind, figures in kinds.items()} == {"cold": 1, "warm": 2}
    assert kinds["warm"].requests_per_second == 1.0
    assert Figures.by_kind(Outcomes(2.0, each[1:]), PROMISE) == {}


def test_a_run_without_any_answer_has_figures() -> None:
    figures = Figures.of(Outcomes(1.0, (outcome(error="timeout"),)), PROMISE)
    assert figures.first_token is figures.inter_token is figures.whole is None
    assert (figures.kept, figures.tokens_per_second) == (0.0, 0.0)

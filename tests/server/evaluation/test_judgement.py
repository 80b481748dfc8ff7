"""Verdicts on made-up outcomes."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.server.evaluation.judgement import (
    FEWEST_EXAMPLES,
    MARGIN,
    Judgement,
    Verdict,
    judge,
)
from weft.server.evaluation.outcome import Outcome

EXAMPLES = 40


def base_outcomes(count: int = EXAMPLES, seed: int = 0) -> list[Outcome]:
    """Examples of very different difficulty and length."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 30, count)
    losses = random.uniform(0.2, 4.0, count) * lengths
    return [Outcome(float(a), int(b), False) for a, b in zip(losses, lengths, strict=True)]


def changed(outcomes: Sequence[Outcome], by: float, noise: float = 0.0) -> list[Outcome]:
    """The same outcomes with `by` nats more for each token, and noise."""
    random = np.random.default_rng(1)
    return [
        Outcome(one.loss + one.tokens * (by + noise * random.normal()), one.tokens, one.exact_match)
        for one in outcomes
    ]


def judged(by: float, noise: float = 0.0, count: int = EXAMPLES, seed: int = 0) -> Judgement:
    base = base_outcomes(count)
    outcomes = {"base": base, "a": changed(base, by, noise)}
    return judge([False] * count, outcomes, "base", seed)[1]


@pytest.mark.parametrize(
    ("by", "noise", "expected"),
    [
        (-0.3, 0.2, Verdict.HELPS),
        (0.3, 0.2, Verdict.HARMS),
        (0.0, 0.2, Verdict.NO_DIFFERENCE),
        (-0.05, 2.0, Verdict.NO_DIFFERENCE),  # not sure
        (MARGIN / 10, 0.0, Verdict.NO_DIFFERENCE),  # sure, and too small to matter
        (-MARGIN / 10, 0.0, Verdict.NO_DIFFERENCE),
    ],
)
def test_the_verdict(by: float, noise: float, expected: Verdict) -> None:
    assert judged(by, noise).verdict is expected


def test_examples_are_compared_with_themselves() -> None:
    """A steady gain, small beside how much examples differ, is seen all the same."""
    found = judged(-0.05)
    assert found.task
    assert found.task.loss.difference
    assert found.task.loss.high - found.task.loss.low > 0.3
    assert found.task.loss.difference.low == pytest.approx(-0.05)
    assert found.task.loss.difference.high == pytest.approx(-0.05)
    assert found.verdict is Verdict.HELPS


def test_too_few_examples_have_no_verdict() -> None:
    assert judged(5.0, count=FEWEST_EXAMPLES - 1).verdict is Verdict.TOO_FEW
    assert judged(5.0, count=FEWEST_EXAMPLES).verdict is Verdict.HARMS


def test_the_base_and_what_is_missing_have_none() -> None:
    base = base_outcomes()
    general = [True] * EXAMPLES
    of_base, of_adapter = judge(general, {"b": base, "a": changed(base, 0.5)}, "b", 0)
    assert (of_base.verdict, of_base.forgets, of_base.task) == (None, None, None)
    assert of_base.general
    assert of_base.general.loss.difference is None
    assert (of_adapter.verdict, of_adapter.forgets) == (None, True)
    assert judged(0.5).forgets is None


def test_an_adapter_may_help_and_forget() -> None:
    task, general = base_outcomes(seed=1), base_outcomes(seed=2)
    outcomes = {
        "base": task + general,
        "keeps": changed(task, -0.5, 0.1) + changed(general, 0.0, 0.05),
        "forgets": changed(task, -0.5, 0.1) + changed(general, 0.4, 0.1),
    }
    kinds = [False] * EXAMPLES + [True] * EXAMPLES
    found = {one.model: (one.verdict, one.forgets) for one in judge(kinds, outcomes, "base", 0)}
    assert found["keeps"] == (Verdict.HELPS, False)
    assert found["forgets"] == (Verdict.HELPS, True)


def test_a_seed_repeats_its_intervals() -> None:
    assert judged(0.1, 0.5, seed=3) == judged(0.1, 0.5, seed=3)
    assert judged(0.1, 0.5, seed=3) != judged(0.1, 0.5, seed=4)


def test_shares_count_only_the_examples_that_ask() -> None:
    base = [Outcome(1.0, 1, False, regex=i < 5 if i < 10 else None) for i in range(20)]
    better = [Outcome(1.0, 1, True, regex=True if i < 10 else None) for i in range(20)]
    of_base, of_better = judge([False] * 20, {"base": base, "a": better}, "base", 0)
    assert of_base.task
    assert of_better.task
    assert of_base.task.json is None
    assert of_base.task.exact_match
    assert of_base.task.exact_match.value == 0.0
    assert of_base.task.regex
    assert of_base.task.regex.value == 0.5
    assert of_base.task.regex.low < 0.5 < of_base.task.regex.high
    assert of_better.task.regex
    assert of_better.task.regex.difference
    assert of_better.task.regex.difference.low > 0


def test_a_perplexity_beyond_numbers_stays_finite() -> None:
    found = judge([False] * 9, {"base": [Outcome(1e6, 1)] * 9}, "base", 0)[0]
    assert found.task
    assert np.isfinite(found.task.perplexity.value)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 20)), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_an_interval_holds_its_estimate(rows: list[tuple[float, int]], seed: int) -> None:
    outcomes = [Outcome(loss * tokens, tokens) for loss, tokens in rows]
    scores = judge([False] * len(rows), {"base": outcomes}, "base", seed)[0].task
    assert scores
    per_token = [loss for loss, _ in rows]
    assert min(per_token) - 1e-9 <= scores.loss.low <= scores.loss.high <= max(per_token) + 1e-9
    assert scores.loss.value == pytest.approx(
        sum(outcome.loss for outcome in outcomes) / sum(outcome.tokens for outcome in outcomes)
    )


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 samples from one population about 95 in 100 intervals hold its mean."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        losses = random.gamma(4.0, 0.5, 40)
        outcomes = [Outcome(float(loss), 1) for loss in losses]
        scores = judge([False] * 40, {"base": outcomes}, "base", 0)[0].task
        assert scores
        held += scores.loss.low <= 2.0 <= scores.loss.high
    assert 0.90 <= held / 200 <= 0.98

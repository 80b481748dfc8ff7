"""Workloads: pure functions of a load, names and a seed, with the distributions that they name."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.request import Request
from serving.suite import WORKLOADS, Names
from serving.workloads import COLD, WARM, Load, cold_stream, punica, s_lora, shared_prefix

NAMES = [f"a{number}" for number in range(400)]
LONG = Load(rate=50.0, seconds=200.0, seed=3, prompt=(1, 1), answer=(1, 1))

Make = Callable[[Load, list[str]], list[Request]]
MAKERS: dict[str, Make] = {
    "s-lora": s_lora,
    **{
        name: partial(punica, popularity=name)
        for name in ("distinct", "uniform", "skewed", "identical")
    },
    "cold": lambda load, names: cold_stream(load, names[:4], names[4:], load.seconds / 50),
    "prefix": partial(shared_prefix, prefix=7, shared=True),
    "no prefix": partial(shared_prefix, prefix=7, shared=False),
}
ranges = st.tuples(st.integers(1, 9), st.integers(9, 20))
loads = st.builds(
    Load,
    rate=st.floats(0.5, 20.0),
    seconds=st.floats(0.5, 4.0),
    seed=st.integers(0, 2**32),
    cv=st.floats(0.3, 4.0),
    prompt=ranges,
    answer=ranges,
    vocabulary=st.integers(10, 5000),
    alpha=st.floats(0.05, 3.0),
)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@settings(max_examples=20, deadline=None)
@given(load=loads)
def test_every_request_is_within_what_the_load_says(make: Make, load: Load) -> None:
    requests = make(load, NAMES)
    assert requests == make(load, NAMES)
    times = [-1.0 if request.at is None else request.at for request in requests]
    assert times == sorted(times)
    assert all(0 <= at < load.seconds for at in times)
    for request in requests:
        assert request.adapter in NAMES
        assert load.answer[0] <= request.max_tokens <= load.answer[1]
        assert isinstance(request.prompt, tuple)
        assert all(3 <= token < load.vocabulary for token in request.prompt)
        prefix = 7 if "prefix" in str(make) else 0
        assert load.prompt[0] <= len(request.prompt) - prefix <= load.prompt[1]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_another_seed_is_another_workload(make: Make) -> None:
    load = Load(rate=20.0, seconds=3.0, seed=1)
    assert make(load, NAMES) != make(replace(load, seed=2), NAMES)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_rate_and_the_variation_asked_for(cv: float) -> None:
    times = [0.0, *(request.at or 0.0 for request in s_lora(replace(LONG, cv=cv), NAMES))]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert np.mean(gaps) == pytest.approx(1 / LONG.rate, rel=0.1)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.1)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_s_loras_popularity_is_a_power_law(alpha: float) -> None:
    names = NAMES[:10]
    requests = s_lora(replace(LONG, alpha=alpha), names)
    counts = Counter(request.adapter for request in requests)
    for index, name in enumerate(names):
        share = ((index + 1) / 10) ** alpha - (index / 10) ** alpha
        assert counts[name] / len(requests) == pytest.approx(share, abs=0.02)


def test_punicas_popularities() -> None:
    load = replace(LONG, rate=0.5)
    total = len(s_lora(load, NAMES))

    def counts(popularity: str) -> list[int]:
        drawn = Counter(request.adapter for request in punica(load, NAMES, popularity))
        assert drawn.total() == total
        return sorted(drawn.values(), reverse=True)

    assert 90 < total < 121  # so that the square root of it is 10 to 11
    assert counts("distinct") == [1] * total
    assert counts("identical") == [total]
    uniform = counts("uniform")
    assert len(uniform) == np.ceil(np.sqrt(total))
    assert max(uniform) - min(uniform) <= 1
    skewed = counts("skewed")
    assert skewed[-6:] == [7, 5, 3, 2, 1, 1]
    assert all(more <= 1.5 * fewer + 1 for more, fewer in pairwise(skewed[:-2]))


def test_distinct_adapters_come_in_turn_where_there_are_too_few() -> None:
    requests = punica(LONG, NAMES[:32], "distinct")
    for begin in range(0, len(requests) - 32, 32):
        assert len({request.adapter for request in requests[begin : begin + 32]}) == 32


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="need 101 adapters, and there are 3"):
        punica(replace(LONG, seed=3), NAMES[:3], "uniform")
    with pytest.raises(ValueError, match="'round' is none of distinct, uniform"):
        punica(LONG, NAMES, "round")
    with pytest.raises(ValueError, match="20 cold adapters are needed, and there are 3"):
        cold_stream(LONG, NAMES, NAMES[:3], 10.0)


def test_each_cold_adapter_is_asked_for_once_beside_warm_traffic() -> None:
    warm, cold = NAMES[:4], NAMES[4:]
    requests = cold_stream(LONG, warm, cold, every=1.0)
    asked = {kind: [r for r in requests if r.kind == kind] for kind in (COLD, WARM)}
    assert [request.adapter for request in asked[COLD]] == cold[:200]
    assert [request.at for request in asked[COLD]] == [float(second) for second in range(200)]
    assert {request.adapter for request in asked[WARM]} == set(warm)
    assert len(asked[WARM]) == pytest.approx(LONG.rate * LONG.seconds, rel=0.05)


def test_a_prefix_is_shared_by_all_requests_for_an_adapter_and_by_nobody_else() -> None:
    load = replace(LONG, seconds=4.0)
    shared = shared_prefix(load, NAMES[:5], 20, shared=True)
    apart = shared_prefix(load, NAMES[:5], 20, shared=False)
    assert len({(request.adapter, request.prompt[:20]) for request in shared}) == 5
    assert len({request.prompt[:20] for request in shared}) == 5
    assert len({request.prompt[:20] for request in apart}) == len(apart)
    for one, other in zip(shared, apart, strict=True):
        assert replace(one, prompt=one.prompt[20:]) == replace(other, prompt=other.prompt[20:])


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_goes_before_a_workload_is_other_requests_of_its_kind(name: str) -> None:
    load = Load(rate=10.0, seconds=20.0, seed=5)
    names = Names(
        [f"s{number}" for number in range(2000)],
        [f"m{number}" for number in range(200)],
        [f"c{number}" for number in range(50)],
    )
    measured, before = WORKLOADS[name].make(load, names), WORKLOADS[name].warm_up(load, names, 64)
    assert len(before) == 64
    assert not {request.prompt for request in before} & {request.prompt for request in measured}
    assert not any((request.adapter or "").startswith("c") for request in before)

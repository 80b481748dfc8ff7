"""What a schedule does where pages run short, and where they are shared."""

from collections import Counter

import pytest
from scheduling import ROOT, World, limits, request, shape

from weft.server.engine.prefix_cache import PrefixRoot


def test_the_latest_arrival_is_preempted_and_loses_no_token() -> None:
    config = limits(num_pages=9)
    world = World(config, root=None)
    for name in "ab":
        world.scheduler.add(request(name, 8, max_tokens=16))
    world.run()
    assert world.scheduler.preemptions >= 1
    assert all(world.tokens[name, 0] == list(range(8, 24)) for name in "ab")
    ends = [step for step, rows in enumerate(world.trace) for name, *_ in rows if name == "a"]
    assert ends == list(range(len(ends))), "the first arrival never waited"


def test_a_preempted_sequence_finds_its_own_pages_again() -> None:
    world = World(limits(num_pages=11))
    world.scheduler.add(request("a", 8, max_tokens=26))
    world.scheduler.add(request("b", 8, max_tokens=14))
    world.run()
    prefills = [
        (start, count)
        for rows in world.trace
        for name, _, start, count in rows
        if name == "b" and count > 1
    ]
    assert world.scheduler.preemptions == 1
    (first, again) = prefills
    assert first == (0, 8)
    assert again[0] > 0


@pytest.mark.parametrize("root", [ROOT, None])
def test_what_nobody_needs_the_pages_of_is_not_computed_again(root: PrefixRoot | None) -> None:
    world = World(root=root)
    world.scheduler.add(request("a", 9, max_tokens=20))
    for _ in range(4):
        world.step()
    for _ in range(3):
        world.scheduler.pause("a", paused=True)
        world.step()
        world.scheduler.pause("a", paused=False)
        world.step()
    world.run()
    items = [item for step in world.trace for item in step]
    computed = [start + row for *_, start, count in items for row in range(count)]
    assert computed == list(range(9 + 20 - 1))
    assert world.tokens["a", 0] == list(range(9, 29))
    assert world.cached["a", 0] == 0


def test_others_take_the_pages_of_one_that_waits_the_last_of_them_first() -> None:
    world = World(limits(num_pages=9), root=None)
    world.scheduler.add(request("a", 16, max_tokens=3))
    world.step()
    world.scheduler.pause("a", paused=True)
    world.scheduler.add(request("b", 20, max_tokens=3))
    world.until(lambda: ("b", 0) in world.ended)
    world.scheduler.pause("a", paused=False)
    (again,) = world.step().items
    assert 0 < again.start < 16
    world.run()
    assert world.tokens["a", 0] == [16, 17, 18]


def test_a_queued_request_waits_until_its_prompt_fits() -> None:
    world = World(limits(num_pages=9, max_num_batched_tokens=64))
    world.scheduler.add(request("a", 16, max_tokens=4))
    world.scheduler.add(request("b", 20, max_tokens=1))
    names = [{name for name, *_ in shape(world.step())} for _ in range(5)]
    assert names == [{"a"}] * 4 + [{"b"}]


def test_admission_leaves_each_running_sequence_a_page_to_grow_into() -> None:
    world = World(limits(num_pages=6), root=None)
    world.scheduler.add(request("a", 3, max_tokens=4))
    world.step()
    world.scheduler.add(request("b", 16, max_tokens=1))
    world.run()
    assert world.scheduler.preemptions == 0
    assert [name for name, *_ in world.trace[-1]] == ["b"]


# ---- shared prefixes


def test_children_share_the_prompt_that_the_first_one_computed() -> None:
    world = World()
    world.scheduler.add(request("r", 13, n=3))
    assert shape(world.step()) == [("r", 0, 13)]
    assert shape(world.step()) == [("r", 13, 1), ("r", 12, 1), ("r", 12, 1)]
    world.run()
    assert world.cached == {("r", 0): 0, ("r", 1): 12, ("r", 2): 12}
    assert len(world.scheduler.tables.referenced) == 0


@pytest.mark.parametrize("index", [0, 1, 2])
def test_ending_one_child_before_the_prompt_is_computed_lets_the_others_live(index: int) -> None:
    world = World()
    world.scheduler.add(request("r", 40, n=3))
    world.step()
    world.scheduler.abort("r", index)
    world.run()
    assert Counter(finish.reason for finish in world.ended.values()) == {"abort": 1, "length": 2}


def test_children_that_want_log_probabilities_of_the_prompt_each_compute_it() -> None:
    world = World()
    world.scheduler.add(request("r", 8, n=2, prompt_logprobs=0))
    assert shape(world.step()) == [("r", 0, 8), ("r", 0, 8)]
    world.run()
    assert set(world.cached.values()) == {0}


def test_a_prefix_counts_as_cached_once_even_after_a_preemption() -> None:
    world = World(limits(num_pages=9))
    world.scheduler.add(request("a", 8, max_tokens=16))
    world.scheduler.add(request("b", 8, max_tokens=16))
    world.run()
    assert world.scheduler.preemptions
    assert set(world.cached.values()) == {0}


def test_hits_are_counted() -> None:
    world = World()
    for name in "ab":
        world.scheduler.add(request(name, range(1, 14)))
        world.run()
    assert world.scheduler.tables.prefix_queries == 26
    assert world.scheduler.tables.prefix_hits == 12

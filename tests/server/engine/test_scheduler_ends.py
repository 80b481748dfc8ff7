"""Aborts, pauses and failures, whatever a sequence is doing."""

import pytest
from fake_residency import FakeResidency
from scheduling import World, adapters, limits, request

from weft.server.engine.sequence import Finish


def reach(world: World, state: str) -> None:
    """Brings request "r" into a state."""
    add = world.scheduler.add
    match state:
        case "queued":
            add(request("first", max_tokens=9))
            world.step()
            add(request("r"))
        case "adapter loading":
            add(request("r", adapter="a0"))
            world.step()
        case "prefill":
            add(request("r", 60))
            world.step()
        case "decode":
            add(request("r", max_tokens=9))
            world.step()
            world.step()
        case "preempted":
            add(request("first", 8, max_tokens=20))
            add(request("r", 8, max_tokens=20))
            world.until(lambda: world.scheduler.preemptions > 0)
        case "held":
            add(request("r", 60, n=2))
            world.step()
        case "paused":
            add(request("r", n=2))
            world.step()
            world.scheduler.pause("r", paused=True)
        case "ended":
            add(request("r", max_tokens=1))
            world.step()
    world.step()


STATES = ["queued", "adapter loading", "prefill", "decode", "preempted", "held", "paused"]
STATES += ["ended", "unknown"]


@pytest.mark.parametrize("state", STATES)
def test_an_abort_ends_a_request_in_any_state_and_frees_what_it_held(state: str) -> None:
    config = limits(
        max_num_seqs=1 if state == "queued" else 8, num_pages=10 if state == "preempted" else 65
    )
    world = World(config, adapters(load_steps=50))
    reach(world, state)
    world.scheduler.abort("r")
    world.scheduler.abort("r")
    world.settle()
    reasons = {f.reason for (name, _), f in world.ended.items() if name == "r"}
    assert reasons == {"ended": {"length"}, "unknown": set()}.get(state, {"abort"})
    world.run()


def test_a_paused_request_leaves_its_place_and_loses_no_token() -> None:
    world = World(limits(max_num_seqs=1))
    world.scheduler.add(request("slow", 4, 8))
    world.scheduler.add(request("other", 4, 8))
    world.until(lambda: world.scheduler.running == 1)
    world.step()
    world.scheduler.pause("slow", paused=True)
    world.settle()
    assert (world.scheduler.running, world.scheduler.awaited) == (0, 1)
    world.until(lambda: ("other", 0) in world.ended)
    assert not world.step(), "nobody reads what could be computed"
    assert world.scheduler.awaited == 0
    world.scheduler.pause("slow", paused=False)
    world.run()
    assert world.tokens["slow", 0] == list(range(4, 12))
    assert world.scheduler.preemptions == 0


def test_pausing_holds_for_children_that_wait_for_their_adapter_or_their_sibling() -> None:
    world = World(residency=FakeResidency(10, 1, {"a": 10}, load_steps=3))
    world.scheduler.add(request("many", 8, 4, adapter="a", n=3))
    world.scheduler.pause("many", paused=True)
    for _ in range(10):
        assert not world.step()
    world.scheduler.pause("many", paused=False)
    world.run()
    assert {finish.reason for finish in world.ended.values()} == {"length"}
    assert len(world.ended) == 3


def test_pausing_what_is_over_is_nothing() -> None:
    world = World()
    world.scheduler.add(request("over"))
    world.run()
    for paused in (True, False):
        world.scheduler.pause("over", paused=paused)
        assert world.scheduler.awaited == 0


def test_what_ends_while_its_step_runs_takes_no_token() -> None:
    world = World()
    for name in "ab":
        world.scheduler.add(request(name, max_tokens=2))
    plan = world.scheduler.plan()
    world.scheduler.abort("a")
    world.scheduler.commit(plan, [[7], [8]])
    world.settle()
    assert world.ended == {("a", 0): Finish("abort")}
    assert world.tokens["a", 0] == []
    world._prefixes.clear()
    world.scheduler.abort("b")
    world.settle()
    assert world.tokens["b", 0] == [8]


def test_one_failing_sequence_leaves_the_others_alone() -> None:
    world = World()
    for name in "ab":
        world.scheduler.add(request(name))
    plan = world.step()
    world.scheduler.fail(plan.items[0].seq, "internal_error")
    world.run()
    assert world.ended["a", 0] == Finish("error", error="internal_error")
    assert world.ended["b", 0] == Finish("length")

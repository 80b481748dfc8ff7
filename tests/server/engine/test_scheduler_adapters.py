"""What a schedule does with adapters: their order, their loads, and what they bring."""

import pytest
from fake_residency import FakeResidency
from msgspec import structs
from scheduling import ROOT, World, adapters, limits, request, shape

from weft.adapters.traits import Traits
from weft.server.engine.prefix_cache import PrefixRoot
from weft.server.engine.step_plan import StepPlan


def test_rows_are_sorted_by_slot_with_the_base_first() -> None:
    world = World(limits(max_num_batched_tokens=64), adapters(slots=4, load_steps=0))
    for number, name in enumerate(["a3", None, "a1", "a3", "a0", None]):
        world.scheduler.add(request(f"r{number}", adapter=name, max_tokens=30))
    plans = [world.step() for _ in range(12)]
    slots = [item.slots[0] for item in plans[-1].items]
    assert len(slots) == 6
    assert slots == sorted(slots)
    assert slots[:2] == [-1, -1]


def test_decoding_goes_on_beside_a_load() -> None:
    world = World(residency=adapters(load_steps=5))
    world.scheduler.add(request("base", max_tokens=20))
    world.step()
    world.scheduler.add(request("cold", adapter="a0"))
    world.scheduler.add(request("behind", max_tokens=1))
    names = [[name for name, *_ in shape(world.step())] for _ in range(9)]
    assert names[0] == ["base", "behind"], "who waits for an adapter blocks nobody"
    assert all(step[0] == "base" for step in names)
    assert "cold" in names[-1]


# ---- what adapters bring


def bringing(traits: Traits) -> FakeResidency:
    """A residency of one version, a0, with these traits."""
    return FakeResidency(10, 1, {"a0": 10}, traits={"a0": traits})


def first_plan(world: World) -> StepPlan:
    """The first step that computes something."""
    return next(plan for _ in range(9) if (plan := world.step()))


def copies(plan: StepPlan) -> list[tuple[str, int, int]]:
    """Request, first position, and positions copied before it, of each item."""
    return [(item.seq.request.id, item.start, item.copies) for item in plan.items]


@pytest.mark.parametrize("root", [ROOT, None])
def test_the_full_pages_of_a_prefix_are_shared_once_it_was_copied(root: PrefixRoot | None) -> None:
    world = World(residency=bringing(Traits(prefix=10)), root=root)
    for name in "ab":
        world.scheduler.add(request(name, 3, max_tokens=9, adapter="a0"))
    assert copies(first_plan(world)) == [("a", 10, 10), ("b", 10, 10)]
    world.scheduler.add(request("c", 3, max_tokens=9, adapter="a0"))
    assert copies(world.step()) == [("a", 13, 0), ("b", 13, 0), ("c", 10, 2)]
    # Two pages that a and c share, and of each its own with the prefix's tail.
    assert sorted(world.scheduler.tables.referenced.values()) == [1, 1, 1, 1, 1, 1, 1, 1, 2, 2]
    world.run()
    world.scheduler.add(request("later", 3, adapter="a0"))
    assert copies(first_plan(world)) == [("later", 10, 2)]
    world.run()
    assert set(world.cached.values()) == {0}
    assert world.scheduler.tables.prefix_hits == 0


@pytest.mark.parametrize("root", [ROOT, None])
def test_what_is_kept_of_the_base_is_copied_and_only_the_rest_computed(
    root: PrefixRoot | None,
) -> None:
    world = World(residency=adapters(load_steps=0), root=root)
    for name in "ab":
        world.scheduler.add(
            structs.replace(request(name, tuple(range(8)), 3, adapter="a0"), kept=7)
        )
        first = first_plan(world)
        shared = 4 if root and name == "b" else 0  # a page, which is the base's
        assert copies(first) == [(name, 7, 7 - shared)]
        assert [(item.count, item.slots) for item in first.items] == [(1, [0])]
        world.run()
        assert world.tokens[name, 0] == [8, 9, 10]


@pytest.mark.parametrize(("traits", "begins"), [({"prefix": 10}, 10), ({"embeddings": 3}, 0)])
def test_nothing_is_kept_for_what_comes_after_positions_of_an_adapter(
    traits: dict[str, int], begins: int
) -> None:
    world = World(residency=bringing(Traits(**traits)))
    world.scheduler.add(structs.replace(request("a", 8, 3, adapter="a0"), kept=7))
    assert copies(plan := first_plan(world)) == [("a", begins, begins)]
    assert plan.rows == 8 + sum(traits.values()) - begins
    world.run()


def test_virtual_tokens_are_computed_and_paid_for_in_chunks() -> None:
    world = World(residency=bringing(Traits(embeddings=20)))
    world.scheduler.add(request("r", 5, adapter="a0"))
    assert shape(first_plan(world)) == [("r", 0, 16)]
    assert shape(world.step()) == [("r", 16, 9)]
    world.run()
    assert world.tokens["r", 0] == [5, 6, 7, 8]


@pytest.mark.parametrize("traits", [Traits(prefix=100), Traits(embeddings=100)])
@pytest.mark.parametrize(("tokens", "reason"), [(8, "length"), (9, "error")])
def test_what_an_adapter_brings_counts_against_the_context(
    traits: Traits, tokens: int, reason: str
) -> None:
    world = World(limits(max_model_len=108), residency=bringing(traits))
    world.scheduler.add(request("r", tokens - 1, max_tokens=50, adapter="a0", n=3))
    world.run()
    assert {finish.reason for finish in world.ended.values()} == {reason}
    assert {len(found) for found in world.tokens.values()} == {1 if reason == "length" else 0}


def test_rows_before_an_invocation_are_scheduled_with_the_base() -> None:
    world = World(residency=bringing(Traits(invocation=(7, 8))))
    world.scheduler.add(request("r", (*range(20, 40), 7, 8, 7), adapter="a0", max_tokens=3))
    first = first_plan(world)
    assert [item.shares for item in first.items] == [()]
    (second,) = world.step().items
    assert second.slots == [-1] * 4 + [0] * 3
    assert [item.slots for item in world.step().items] == [[0]]
    world.run()

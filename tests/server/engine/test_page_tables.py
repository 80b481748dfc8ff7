"""Pages of a tenant's own: what others do neither fills them, nor evicts from them, nor is seen."""

from random import Random

import pytest
from scheduling import ROOT, World, limits, request

from weft.adapters.tenancy import TenantContext
from weft.server.engine.page_tables import PageTables
from weft.server.engine.sequence import Finish, Sequence

PROMPT = tuple(range(1, 17))  # four pages
MINE = TenantContext("mine", kv_pages=8)


def flood(world: World, name: str, tenant: str = "theirs") -> None:
    """Fills and empties all pages that a tenant can get, and leaves its own prefixes in them."""
    for number in range(8):
        world.scheduler.add(request(f"{name}-{number}", 30, max_tokens=20, tenant=tenant))
    world.run()


def ask(world: World, name: str, tenant: str = "mine") -> int:
    """Asks the same thing as ever; returns how many tokens were cached."""
    world.scheduler.add(request(name, PROMPT, tenant=tenant))
    world.run()
    return world.cached[name, 0]


@pytest.mark.parametrize("own", [True, False])
def test_what_others_do_is_not_seen_in_what_is_cached(own: bool) -> None:
    world = World(limits(num_pages=33))
    world.scheduler.reserve([MINE] if own else [])
    seen = [ask(world, "first"), ask(world, "second")]
    flood(world, "one")
    seen.append(ask(world, "third"))
    assert seen == [0, 12, 12 if own else 0]


def test_a_tenants_own_flood_evicts_its_own_and_nobody_elses() -> None:
    world = World(limits(num_pages=33))
    world.scheduler.reserve([MINE])
    ask(world, "mine-1")
    ask(world, "theirs-1", tenant="theirs")
    for number in range(6):
        world.scheduler.add(request(f"flood-{number}", 30, max_tokens=3, tenant="mine"))
    world.run()
    assert ask(world, "theirs-2", tenant="theirs") == 12
    assert ask(world, "mine-2") == 0


def test_others_that_have_used_up_their_pages_keep_nobody_waiting() -> None:
    world = World(limits(num_pages=33, max_num_seqs=8, max_num_batched_tokens=64))
    world.scheduler.reserve([MINE])
    for number in range(6):
        world.scheduler.add(request(f"theirs-{number}", 40, max_tokens=40, tenant="theirs"))
    world.step()
    assert world.scheduler.waiting >= 4
    world.scheduler.add(request("mine", PROMPT, tenant="mine"))
    assert "mine" in {item.seq.request.id for item in world.step().items}
    world.run()


def test_growth_preempts_only_those_of_the_same_pages() -> None:
    world = World(limits(num_pages=33), root=None)
    world.scheduler.reserve([MINE])
    for tenant in ("theirs", "mine", "mine", "theirs"):
        number = len(world.scheduler._requests)
        world.scheduler.add(request(f"{tenant}-{number}", 8, max_tokens=20, tenant=tenant))
    world.run()
    steps = [{name for name, *_ in step} for step in world.trace]
    lives = {name: "".join("-+"[name in step] for step in steps) for name in set().union(*steps)}
    assert {name for name, life in lives.items() if "+-" in life.rstrip("-")} == {"mine-2"}
    assert all(finish == Finish("length") for finish in world.ended.values())


def test_a_request_that_a_tenants_pages_cannot_hold_is_refused() -> None:
    world = World()
    world.scheduler.reserve([MINE])
    for tenant in ("mine", "theirs"):
        world.scheduler.add(request(tenant, 40, tenant=tenant))
    world.run()
    assert world.ended["mine", 0] == Finish("error", error="context_length_exceeded")
    assert world.ended["theirs", 0] == Finish("length")


def test_background_work_uses_its_tenants_pages() -> None:
    tables = PageTables(33, 4, ROOT)
    tables.reserve(tables.parts([MINE]))
    assert not tables.could_hold(MINE.background, 33)
    assert tables.could_hold(TenantContext("theirs"), 33)


def test_who_asks_for_more_than_there_is_gets_a_part_and_some_stay_for_all() -> None:
    tables = PageTables(65, 4, ROOT)
    parts = tables.parts([TenantContext("a", kv_pages=300), TenantContext("b", kv_pages=100)])
    assert parts == {"a": 42, "b": 14}
    tables.reserve(parts)
    assert tables.reserved == parts
    assert (tables.free, tables.total, tables.check([])) == (64, 64, ())


def test_reserving_again_changes_only_what_changed() -> None:
    world = World(limits(num_pages=65))
    world.scheduler.reserve([MINE])
    assert ask(world, "first") == 0
    other = TenantContext("other", kv_pages=8)
    world.scheduler.reserve([MINE, other])
    assert ask(world, "second") == 12
    world.scheduler.reserve([TenantContext("mine", kv_pages=9), other])
    assert ask(world, "third") == 0
    world.scheduler.reserve([])
    assert world.scheduler.tables.reserved == {}
    assert world.scheduler.check() == ()


def test_what_runs_goes_on_where_it_still_fits_and_ends_where_it_does_not() -> None:
    world = World(limits(num_pages=65))
    world.scheduler.add(request("long", 40, max_tokens=9, tenant="mine", n=2))
    world.scheduler.add(request("short", 8, max_tokens=9, tenant="mine"))
    world.step()
    world.step()
    world.scheduler.reserve([MINE])
    world.run()
    too_long = Finish("error", error="context_length_exceeded")
    assert world.ended["long", 0] == world.ended["long", 1] == too_long
    assert world.ended["short", 0] == Finish("length")
    assert len(world.tokens["short", 0]) == 9


def test_pages_do_not_change_hands_while_something_runs() -> None:
    world = World()
    world.scheduler.add(request("r"))
    world.step()
    with pytest.raises(ValueError, match="nothing runs"):
        world.scheduler.tables.reserve({"mine": 8})


def test_a_cache_without_a_page_to_give_is_refused() -> None:
    with pytest.raises(ValueError, match="page 0"):
        PageTables(1, 4, ROOT)


def test_a_lone_tenant_may_have_all_but_an_eighth() -> None:
    assert PageTables(65, 4, ROOT).parts([TenantContext("a", kv_pages=300)]) == {"a": 56}
    assert PageTables(65, 4, ROOT).parts([TenantContext("a", kv_pages=56)]) == {"a": 56}
    assert PageTables(8, 4, ROOT).parts([TenantContext("a", kv_pages=300)]) == {"a": 6}


def test_one_page_beside_page_0_is_enough() -> None:
    assert PageTables(2, 4, ROOT).total == 1


def running(number: int, tokens: list[int], tenant: str = "theirs") -> Sequence:
    return Sequence(request(f"r{number}", tokens, tenant=tenant), 0, number, tokens)


def test_who_competes_for_pages_is_known() -> None:
    tables = PageTables(33, 4, ROOT)
    tables.reserve(tables.parts([MINE]))
    one, two = running(0, [1]), running(1, [2])
    mine = running(2, [3], tenant="mine")
    assert tables.crowd_of(one) is tables.crowd_of(two)
    assert tables.crowd_of(one) is not tables.crowd_of(mine) is not None
    assert tables.page_part(mine) == 1 / 8
    assert tables.part(running(3, [3] * 9, tenant="mine")) == 3 / 8


def test_what_is_shared_with_who_goes_is_not_room_twice() -> None:
    for length in range(1, 60):
        tables = PageTables(9, 4, ROOT)
        other, claimant = running(0, [7] * 17), running(1, [7] * length)
        assert tables.admit(other)
        other.computed = 16
        tables.publish(other)
        has_room = tables.has_room(claimant, without=[other])
        tables.release(other)
        assert tables.admit(claimant) is has_room, length


def test_pages_are_kept_only_for_who_comes_again() -> None:
    tables = PageTables(9, 4, None)
    ended, waits = (running(number, [7] * 8) for number in range(2))
    for seq in (ended, waits):
        assert tables.admit(seq)
        seq.computed = 7
    tables.release(ended)
    assert (tables.cached, tables.free) == (0, 6)
    tables.release(waits, keep=True)
    assert (tables.cached, tables.free) == (2, 6)


@pytest.mark.parametrize("seed", range(300))
def test_there_is_room_exactly_where_it_would_be_given(seed: int) -> None:
    """Whether a sequence has room without others is what comes of it once they are gone."""
    random = Random(seed)
    tables = PageTables(17, 4, ROOT if random.random() < 0.8 else None)
    tables.reserve(tables.parts([TenantContext("mine", kv_pages=random.choice([4, 7]))]))
    texts = [[n] * 12 for n in range(3)]

    def sequence(number: int) -> Sequence:
        tokens = random.choice(texts)[: random.randint(1, 12)] + [9] * random.randint(0, 20)
        return running(number, tokens, random.choice(["mine", "theirs", "others"]))

    live = [seq for seq in map(sequence, range(8)) if tables.admit(seq)]
    for seq in live:
        seq.computed = seq.length - 1
        tables.publish(seq)
    gone = [seq for seq in live if random.random() < 0.3]
    claimant = sequence(8)
    has_room = tables.has_room(claimant, without=gone)
    for seq in gone:
        tables.release(seq)
    assert tables.admit(claimant) is has_room


@pytest.mark.parametrize(
    ("pages", "positions", "found", "taken"),
    [
        (8, 1, 1, 2),  # in the page that it has
        (8, 2, 2, 2),
        (8, 3, 3, 3),
        (8, 99, 22, 7),  # but a page for each that runs
        (4, 7, 6, 3),
        (3, 7, 2, 2),  # nothing to spare
    ],
)
def test_room_behind_a_sequence_is_taken_of_spare_pages(
    pages: int, positions: int, found: int, taken: int
) -> None:
    tables = PageTables(1 + pages, 4, None)
    seq = running(0, [1] * 6)
    assert tables.admit(seq)
    seq.computed = 5
    assert tables.stretch(seq, positions) == found
    assert len(seq.pages) == taken
    assert tables.check([seq]) == ()


def test_all_pages_can_be_taken_back_at_once() -> None:
    """And nothing is found in them afterwards; whose they are stays as it was."""
    tables = PageTables(33, 4, ROOT)
    tables.reserve(tables.parts([MINE]))
    before = tables.reserved
    for number, tenant in enumerate(("mine", "theirs")):
        seq = running(number, list(PROMPT), tenant)
        assert tables.admit(seq)
        seq.computed = seq.length - 1
        tables.publish(seq)
    tables.clear()
    assert (tables.free, tables.cached, tables.referenced) == (32, 0, {})
    assert tables.reserved == before
    assert tables.check([]) == ()
    again = running(2, list(PROMPT), "theirs")
    assert tables.admit(again)
    assert (again.published, again.computed) == (0, 0)
    tables.publish(again)
    assert tables.check([again]) == ()


def test_what_was_found_is_published_already_and_counted_once() -> None:
    tables = PageTables(33, 4, ROOT)
    first, second = running(0, list(PROMPT)), running(1, [*PROMPT, 99])
    assert tables.admit(first)
    first.computed = first.length - 1
    tables.publish(first)
    assert tables.admit(second)
    assert (second.published, second.computed) == (3, 12)
    assert (tables.prefix_queries, tables.prefix_hits) == (33, 12)

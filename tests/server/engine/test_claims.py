"""Who gives way to whom: places and pages of a full engine, by weighted share."""

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling import ROOT, World, limits, request, shape

from weft.server.engine.sequence import Sequence


def running(world: World) -> dict[str, int]:
    """How many sequences of each tenant run."""
    tenants = [seq.tenant.id for seq in world.scheduler._running]
    return {tenant: tenants.count(tenant) for tenant in tenants}


def full(world: World, *, of: str = "heavy", count: int, **asked: object) -> World:
    """Lets so many requests of a tenant begin, and as many wait."""
    for number in range(2 * count):
        name = f"{of}-{number}"
        world.scheduler.add(request(name, 8, 12, tenant=of, **asked))  # type: ignore[arg-type]
    world.until(lambda: world.scheduler.running == count)
    return world


def test_who_holds_nothing_gets_a_place_at_once_and_nobody_loses_a_token() -> None:
    world = full(World(limits(max_num_seqs=4, max_num_batched_tokens=64)), count=4)
    world.step()
    world.scheduler.add(request("light", 8, 4, tenant="light"))
    began = [name for name, start, _ in shape(world.step()) if start == 0]
    assert began == ["light"]
    assert running(world) == {"heavy": 3, "light": 1}
    assert world.scheduler.preemptions == 1
    world.run()
    lengths = {name: len(tokens) for (name, _), tokens in world.tokens.items()}
    assert lengths.pop("light") == 4
    assert set(lengths.values()) == {12}


def test_the_latest_arrival_gives_way_and_is_the_first_to_come_back() -> None:
    world = full(World(limits(max_num_seqs=4, max_num_batched_tokens=64)), count=4)
    world.scheduler.add(request("light", 8, 2, tenant="light"))
    world.step()
    gone = next(seq for seq in world.scheduler._queue if seq.preemptions)
    assert gone.request.id == "heavy-3"
    world.until(lambda: ("light", 0) in world.ended)
    world.step()
    assert "heavy-3" in {seq.request.id for seq in world.scheduler._running}


def test_tenants_meet_at_their_weights_and_then_nothing_is_taken() -> None:
    world = full(World(limits(max_num_seqs=8, max_num_batched_tokens=64)), count=8)
    for number in range(8):
        asked = request(f"light-{number}", 8, 12, tenant="light", weight=3.0)
        world.scheduler.add(asked)
    for _ in range(8):
        world.step()
    assert running(world) == {"heavy": 2, "light": 6}
    assert world.scheduler.preemptions == 6


def test_a_tenants_only_sequence_stays() -> None:
    world = World(limits(max_num_seqs=2, max_num_batched_tokens=64))
    for tenant in "abc":
        world.scheduler.add(request(tenant, 8, 12, tenant=tenant))
    world.run()
    assert world.scheduler.preemptions == 0


def test_pages_are_taken_as_places_are() -> None:
    world = World(limits(num_pages=33, max_num_batched_tokens=128))
    for number in range(3):
        world.scheduler.add(request(f"heavy-{number}", 36, 4, tenant="heavy"))
    world.step()
    world.scheduler.add(request("light", 30, 2, tenant="light"))
    assert "light" in [name for name, start, _ in shape(world.step()) if start == 0]
    assert running(world) == {"heavy": 2, "light": 1}
    world.run()


def test_who_has_less_grows_into_the_pages_of_who_has_more() -> None:
    world = World(limits(num_pages=21, max_num_batched_tokens=128), root=None)
    for number in range(3):
        world.scheduler.add(request(f"heavy-{number}", 19, 9, tenant="heavy"))
    world.scheduler.add(request("light", 7, 20, tenant="light"))
    rows: list[str] = []
    while ("light", 0) not in world.ended:
        rows += [name for name, _, _ in shape(world.step()) if name == "light"]
    assert len(rows) == 20, "it was never preempted, though it arrived last"
    assert world.scheduler.preemptions
    world.run()


TENANTS = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.integers(1, 60), st.integers(1, 30)),
    min_size=2,
    max_size=4,
)
ARRIVALS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    tenants=TENANTS,
    arrivals=ARRIVALS,
    places=st.integers(1, 6),
    pages=st.sampled_from([25, 60, 1000]),
    budget=st.sampled_from([8, 16, 64]),
    cached=st.booleans(),
)
def test_whatever_comes_nobody_starves_and_nothing_idles_and_little_is_done_twice(
    tenants: list[tuple[float, int, int]],
    arrivals: list[tuple[int, int]],
    places: int,
    pages: int,
    budget: int,
    cached: bool,
) -> None:
    config = limits(
        num_pages=pages, max_num_seqs=places, max_num_batched_tokens=max(budget, places)
    )
    world = World(config, root=ROOT if cached else None)
    seen: dict[str, Sequence] = {}

    def step() -> None:
        plan = world.step()
        seen.update({item.seq.request.id: item.seq for item in plan.items})
        _check_work_is_conserved(world, plan.rows)

    work = 0
    for number, (chosen, pause) in enumerate(arrivals):
        weight, prompt, answer = tenants[chosen % len(tenants)]
        tenant = str(chosen % len(tenants))
        asked = request(f"r{number}", prompt, answer, tenant=tenant, weight=weight)
        world.scheduler.add(asked)
        work += prompt + answer
        for _ in range(pause):
            step()
    steps = 0
    while world.live:
        step()
        steps += 1
        assert steps <= 4 * work, "somebody starves"
    assert {finish.reason for finish in world.ended.values()} == {"length"}
    if pages == 1000:  # nobody lacks any, so that all preemptions are takings of places
        for seq in seen.values():
            assert seq.preemptions <= 1 + seq.generated // config.page_size


def _check_work_is_conserved(world: World, rows: int) -> None:
    """No place and no row was left over that the next in turn could have had."""
    scheduler, config = world.scheduler, world.scheduler.limits
    firsts = scheduler._queue.firsts()
    if firsts and rows < config.max_num_batched_tokens and scheduler.running < config.max_num_seqs:
        # What ended with this step gave its places and pages back only after the plan.
        assert world.ended or not scheduler.tables.has_room(firsts[0], without=())


@settings(max_examples=20, deadline=None)
@given(
    weight=st.sampled_from([1.0, 2.0, 3.0]),
    sizes=st.tuples(*(st.integers(1, 60), st.integers(1, 30)) * 2),
    places=st.integers(1, 8),
    cached=st.booleans(),
)
def test_backlogged_tenants_differ_by_no_more_than_a_request_of_each(
    weight: float, sizes: tuple[int, int, int, int], places: int, cached: bool
) -> None:
    config = limits(num_pages=1000, max_num_seqs=places)
    world = World(config, root=ROOT if cached else None)
    asked = {"a": (1.0, *sizes[:2]), "b": (weight, *sizes[2:])}
    served = dict.fromkeys(asked, 0)
    paid: dict[Sequence, int] = {}
    worst, number = 0.0, 0
    for _ in range(300):
        for tenant, (of, prompt, answer) in asked.items():
            waiting = sum(seq.tenant.id == tenant for seq in world.scheduler._queue)
            for _ in range(places + 1 - waiting):
                number += 1
                name = f"{tenant}-{number}"
                world.scheduler.add(request(name, prompt, answer, tenant=tenant, weight=of))
        for item in world.step().items:
            fresh = item.stop - max(item.start, paid.get(item.seq, 0))
            served[item.seq.tenant.id] += max(fresh, 0)
            paid[item.seq] = max(item.stop, paid.get(item.seq, 0))
        worst = max(worst, abs(served["a"] - served["b"] / weight))
    assert worst <= sum(sizes) + config.max_num_batched_tokens

"""Which adapters are on the device when more are wanted than fit."""

from collections.abc import Collection, Iterable
from itertools import pairwise

import pytest
from fake_residency import FakeResidency
from msgspec import structs
from scheduling import Clock, World, limits, request

from weft.adapters.blend import Part, text_of
from weft.adapters.pool import SlotRef
from weft.adapters.presence import Presence
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.adapters.traits import PLAIN, Traits
from weft.server.engine.gate import AdapterGate
from weft.server.engine.sequence import Finish, Sequence

PATIENCE = 1.0
STEP = 0.02
SLACK = 0.1  # loads and the steps around them


class Load:
    """Keeps each of some adapters busy: two requests always live, ended ones replaced at once."""

    def __init__(self, world: World, digests: list[str]) -> None:
        self.world = world
        self.digests = digests
        self.number = 0
        self.served: dict[str, list[float]] = {digest: [] for digest in digests}

    def step(self, seconds: float = STEP) -> None:
        for digest in self.digests:
            for _ in range(2 - self.world.scheduler.adapters.get(digest, 0)):
                self.number += 1
                self.world.scheduler.add(
                    request(f"{digest}-{self.number}", 6, max_tokens=8, adapter=digest)
                )
        for item in self.world.step(seconds).items:
            digest = text_of(item.seq.blend)
            if digest in self.served:
                self.served[digest].append(self.world.clock.now)

    def run(self, seconds: float) -> None:
        """Steps for that long."""
        end = self.world.clock.now + seconds
        while self.world.clock.now < end:
            self.step()

    def longest_wait(self, digest: str, since: float = 0.0) -> float:
        times = [since, *self.served[digest], self.world.clock.now]
        return max(later - earlier for earlier, later in pairwise(times))


def world_of(slots: int, sizes: dict[str, int], capacity: int | None = None) -> World:
    residency = FakeResidency(capacity or 10 * slots, slots, sizes)
    return World(limits(patience=PATIENCE, max_num_seqs=16), residency)


def equal(count: int) -> dict[str, int]:
    return {f"a{i}": 10 for i in range(count)}


def steps_to_answer(world: World, name: str) -> int:
    return world.until(lambda: (name, 0) in world.ended)


def test_an_adapter_that_stays_is_not_loaded_again() -> None:
    world = world_of(2, equal(2))
    for number in range(6):
        world.scheduler.add(request(f"r{number}", adapter=f"a{number % 2}"))
        world.run()
    assert world.residency.loads == 2


def test_a_resident_adapter_is_served_at_once_however_many_others_wait() -> None:
    world = world_of(2, equal(60))
    world.scheduler.add(request("warm", adapter="a0", max_tokens=1))
    world.run()
    world.residency.acquire("a0")
    for number in range(1, 60):
        world.scheduler.add(request(f"cold-{number}", adapter=f"a{number}", max_tokens=90))
    world.step()
    world.scheduler.add(request("again", adapter="a0", max_tokens=1))
    assert steps_to_answer(world, "again") == 1


def test_an_idle_adapter_gives_way_without_any_wait() -> None:
    world = world_of(1, equal(2))
    world.scheduler.add(request("first", adapter="a0", max_tokens=1))
    world.run()
    world.scheduler.add(request("second", adapter="a1", max_tokens=1))
    assert steps_to_answer(world, "second") <= 4


def test_who_asks_for_what_cannot_be_loaded_is_told_and_keeps_nobody_waiting() -> None:
    world = World(limits(), FakeResidency(10, 1, equal(2), broken={"a0"}))
    for name in ("a0", "a1"):
        world.scheduler.add(request(name, adapter=name))
    world.run()
    assert world.ended["a0", 0] == Finish("error", error="adapter_invalid")
    assert world.ended["a1", 0] == Finish("length")


def test_a_third_adapter_gets_in_while_two_are_hot_without_end() -> None:
    world = world_of(2, equal(3))
    load = Load(world, ["a0", "a1"])
    load.run(3 * PATIENCE)
    asked = world.clock.now
    world.scheduler.add(request("cold", adapter="a2", max_tokens=1))
    world.until(lambda: ("cold", 0) in world.ended, STEP, step=load.step)
    assert PATIENCE <= world.clock.now - asked <= PATIENCE + SLACK
    load.run(PATIENCE)
    assert all(load.longest_wait(digest) <= 2 * PATIENCE + SLACK for digest in load.digests)


def test_who_had_to_go_waits_like_anyone_else() -> None:
    world = world_of(2, equal(3))
    for number in range(2):
        world.scheduler.add(request(f"long-{number}", max_tokens=99, adapter=f"a{number}"))
    world.until(lambda: world.scheduler.running == 2)
    world.clock.now += 5 * PATIENCE
    world.scheduler.add(request("cold", max_tokens=99, adapter="a2"))
    world.step()
    assert world.scheduler.preemptions == 0, "others are not disturbed before patience is over"
    world.clock.now += PATIENCE
    world.until(lambda: world.scheduler.running == 2)
    for _ in range(4):
        world.step(PATIENCE / 5)
    assert world.scheduler.preemptions == 1


@pytest.mark.parametrize(("slots", "wanted"), [(1, 2), (2, 6), (3, 7)])
def test_all_have_their_turn_and_none_is_loaded_only_to_leave(slots: int, wanted: int) -> None:
    world = world_of(slots, equal(wanted))
    load = Load(world, list(equal(wanted)))
    load.run(30 * PATIENCE)
    turns = -(-wanted // slots)
    for digest in load.digests:
        assert load.longest_wait(digest) <= (turns + 1) * (PATIENCE + SLACK)
    assert world.residency.loads <= slots * (world.clock.now / PATIENCE + 1)


def test_turns_are_short_where_versions_come_back_soon() -> None:
    swap, slots = 0.01, 2
    residency = FakeResidency(10 * slots, slots, equal(5), install_steps=0, swap_seconds=swap)
    world = World(limits(patience=PATIENCE, max_num_seqs=16, num_pages=1025), residency)
    load = Load(world, list(equal(5)))
    load.run(10 * PATIENCE)
    turn = AdapterGate.WORTH * slots * swap
    assert turn < PATIENCE
    for digest in load.digests:
        assert load.longest_wait(digest) <= 3 * (turn + SLACK)
    assert residency.loads <= slots * (world.clock.now / turn + 1), "they are worth their loads"


def test_turns_are_long_while_what_was_computed_is_lost_between_them() -> None:
    """Each of the three can be computed only in a stay of many steps, and there are no pages."""
    residency = FakeResidency(10, 1, equal(3), install_steps=0, swap_seconds=0.0001)
    world = World(limits(num_pages=30, max_num_batched_tokens=16), residency)
    for digest in equal(3):
        world.scheduler.add(request(digest, 100, max_tokens=4, adapter=digest))
    world.run(max_steps=1000)
    assert world.scheduler.preemptions > 0


def test_no_turn_is_longer_than_patience() -> None:
    residency = FakeResidency(10, 1, equal(2), swap_seconds=PATIENCE)
    world = World(limits(patience=PATIENCE), residency)
    load = Load(world, list(equal(2)))
    load.run(10 * PATIENCE)
    assert all(load.longest_wait(digest) <= 2 * (PATIENCE + SLACK) for digest in load.digests)


@pytest.mark.parametrize("load_steps", [1, 10])
def test_room_that_is_made_is_used_in_the_same_step(load_steps: int) -> None:
    """Also where the host keeps none of them: who is on the device stays until one was read."""
    residency = FakeResidency(
        20, 2, equal(4), load_steps=load_steps, install_steps=0, swap_seconds=0.001
    )
    world = World(limits(max_num_seqs=16), residency)
    for digest in equal(4):
        world.scheduler.add(request(digest, max_tokens=80, adapter=digest))
    world.until(lambda: world.scheduler.running == 2)
    for _ in range(80):
        assert len(world.step().items) == 2
    assert world.scheduler.preemptions > 10


def test_many_small_adapters_do_not_starve_a_large_one() -> None:
    small = [f"small{i}" for i in range(8)]
    world = world_of(8, dict.fromkeys(small, 10) | {"large": 40}, capacity=40)
    load = Load(world, small)
    load.run(3 * PATIENCE)
    asked = world.clock.now
    world.scheduler.add(request("large", adapter="large", max_tokens=1))
    world.until(lambda: ("large", 0) in world.ended, STEP, step=load.step)
    assert world.clock.now - asked <= 2 * PATIENCE + SLACK


def test_nobody_is_drained_before_all_who_must_go_may_go() -> None:
    world = world_of(2, {"a0": 10, "a1": 10, "large": 20})
    world.scheduler.add(request("old", max_tokens=99, adapter="a0"))
    world.until(lambda: world.scheduler.running == 1)
    world.scheduler.add(request("large", max_tokens=1, adapter="large"))
    world.clock.now += 0.9 * PATIENCE
    world.scheduler.add(request("new", max_tokens=99, adapter="a1"))
    world.until(lambda: world.scheduler.running == 2)
    world.until(lambda: world.scheduler.preemptions > 0, PATIENCE / 20)
    assert world.scheduler.preemptions == 2
    assert world.clock.now >= 1.9 * PATIENCE
    world.run()


def test_drained_sequences_go_on_where_they_were() -> None:
    world = world_of(1, equal(2))
    world.scheduler.add(request("long", 8, max_tokens=100, adapter="a0"))
    for _ in range(30):
        world.step(0.1 * PATIENCE)
    assert world.scheduler.running == 1
    world.scheduler.add(request("other", 8, max_tokens=100, adapter="a1"))
    world.until(lambda: not world.live, 0.1 * PATIENCE)
    assert world.scheduler.preemptions >= 2
    assert world.tokens["long", 0] == world.tokens["other", 0] == list(range(8, 108))


def test_who_was_drained_goes_on_even_if_the_one_that_waited_is_aborted() -> None:
    world = world_of(1, equal(2))
    world.scheduler.add(request("long", 8, max_tokens=100, adapter="a0"))
    for _ in range(15):
        world.step(0.1 * PATIENCE)
    world.scheduler.add(request("other", adapter="a1"))
    world.until(lambda: not world.scheduler.running, 0.1 * PATIENCE)
    world.scheduler.abort("other")
    world.run()
    assert world.tokens["long", 0] == list(range(8, 108))


def test_a_drained_adapter_does_not_slip_back_in_before_its_room_is_taken() -> None:
    world = World(limits(), FakeResidency(20, 2, equal(4), install_steps=10))
    for number in range(2):
        world.scheduler.add(request(f"long-{number}", max_tokens=90, adapter=f"a{number}"))
    world.until(lambda: world.scheduler.running == 2)
    world.clock.now += PATIENCE
    for number in range(2, 4):
        world.scheduler.add(request(f"cold-{number}", max_tokens=90, adapter=f"a{number}"))
    world.step()
    world.clock.now += PATIENCE
    world.until(lambda: {"a2", "a3"} <= {text_of(item.seq.blend) for item in world.step().items})
    assert world.scheduler.preemptions == 2


class Scripted:
    """A residency that says what the test tells it to say."""

    def __init__(self) -> None:
        self.presence: dict[str, Presence] = {}
        self.victims: tuple[str, ...] = ()
        self.references = 0

    def ensure(self, digest: str, tenant: TenantContext = NOBODY) -> Presence:
        return self.presence[digest]

    def error(self, digest: str) -> Exception:
        raise LookupError(digest)

    def acquire(self, digest: str) -> SlotRef:
        self.references += 1
        return SlotRef(int(digest[1:]), 1)

    def release(self, ref: SlotRef) -> None:
        self.references -= 1

    def traits(self, ref: SlotRef) -> Traits:
        return PLAIN

    def give_up(self, digest: str) -> None:
        pass

    def return_seconds(self, digests: Iterable[str]) -> float:
        return PATIENCE

    def victims_for(self, digest: str, last: Collection[str] = ()) -> tuple[str, ...]:
        return self.victims


def overdue_gate(scripted: Scripted) -> AdapterGate:
    """One that a sequence of each of the residency's versions came to `PATIENCE` ago."""
    clock = Clock()
    gate = AdapterGate(scripted, PATIENCE, clock)
    for number, digest in enumerate(scripted.presence):
        asked = request(f"r{number}", adapter=digest)
        gate.join(Sequence(asked, 0, number, list(asked.prompt)))
    clock.now += PATIENCE
    return gate


def test_who_was_not_drained_is_let_in_while_room_is_made_for_another() -> None:
    scripted = Scripted()
    scripted.presence = {"a0": Presence.WAITING, "a1": Presence.LOADING}
    gate = overdue_gate(scripted)
    scripted.presence["a1"] = Presence.DEVICE
    assert [demand.digest for demand in gate.poll().opened] == ["a1"]


def test_a_drained_adapter_that_left_and_came_back_is_let_in_again() -> None:
    scripted = Scripted()
    device, loading, waiting = Presence.DEVICE, Presence.LOADING, Presence.WAITING
    scripted.presence = {"a0": device, "a1": waiting, "a2": waiting}
    gate = overdue_gate(scripted)
    scripted.victims = ("a0",)
    assert [demand.digest for demand in gate.give_way()] == ["a0"]
    scripted.victims = ()
    assert gate.poll().opened == [], "its room is being given to a1"
    scripted.presence |= {"a0": loading, "a1": device}
    assert [demand.digest for demand in gate.poll().opened] == ["a1"]
    scripted.presence |= {"a0": device}
    assert [demand.digest for demand in gate.poll().opened] == ["a0"]
    assert scripted.references == 2


def test_a_pinned_adapter_is_never_drained() -> None:
    world = world_of(2, equal(3))
    world.residency.pool.pin("a0")
    load = Load(world, ["a0", "a1", "a2"])
    load.run(20 * PATIENCE)
    assert load.longest_wait("a0") <= PATIENCE
    assert all(load.longest_wait(d) <= 3 * (PATIENCE + SLACK) for d in ("a1", "a2"))


def test_a_version_that_someone_else_refers_to_is_waited_for() -> None:
    world = world_of(1, equal(2))
    world.scheduler.add(request("first", adapter="a0", max_tokens=1))
    world.run()
    elsewhere = world.residency.acquire("a0")
    world.scheduler.add(request("second", adapter="a1", max_tokens=1))
    for _ in range(5):
        world.step(PATIENCE)
    assert world.ended.keys() == {("first", 0)}
    world.residency.release(elsewhere)
    assert steps_to_answer(world, "second") <= 4


def test_live_sequences_are_counted_by_adapter() -> None:
    world = world_of(2, equal(2))
    world.scheduler.add(request("r", adapter="a0", n=2))
    world.scheduler.add(request("s", adapter="a1"))
    world.scheduler.add(request("base"))
    assert world.scheduler.adapters == {"a0": 2, "a1": 1}
    world.run()
    assert world.scheduler.adapters == {}


def test_those_that_wait_for_each_others_adapters_all_run() -> None:
    """Each of the four needs two of eight versions, of which four have room."""
    residency = FakeResidency(40, 4, {f"a{n}": 10 for n in range(8)})
    world = World(limits(), residency)
    for number in range(4):
        asked = request(f"r{number}", max_tokens=200)
        blend = (Part(f"a{number}", 1.0), Part(f"a{7 - number}", 1.0))
        world.scheduler.add(structs.replace(asked, blend=blend))
    world.run(max_steps=4000)
    assert len(world.ended) == 4


def test_a_version_that_nobody_waits_for_any_more_is_given_up() -> None:
    world = World(limits(), FakeResidency(10, 1, {"a0": 10, "a1": 10}, load_steps=1000))
    for name in ("first", "second"):
        world.scheduler.add(request(name, adapter="a0"))
    world.step()
    world.scheduler.abort("first")
    world.settle()
    assert world.residency.wanted == {"a0"}
    world.scheduler.abort("second")
    world.settle()
    assert world.residency.wanted == set()

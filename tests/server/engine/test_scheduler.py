"""From arrival to the end of a sequence: batching, chunks, pages, siblings, aborts, fairness."""

from collections import Counter
from collections.abc import Callable

import pytest
from fake_residency import FakeResidency
from msgspec import structs
from scheduling import ROOT, World, limits, request

from weft.adapters.tenancy import TenantContext
from weft.adapters.traits import Traits
from weft.server.engine.limits import Limits
from weft.server.engine.prefix_cache import PrefixRoot
from weft.server.engine.sequence import Finish
from weft.server.engine.step_plan import StepPlan


def shape(plan: StepPlan) -> list[tuple[str, int, int]]:
    """Request, first position and row count of each item."""
    return [(item.seq.request.id, item.start, item.count) for item in plan.items]


def adapters(slots: int = 2, count: int = 4, **how: int) -> FakeResidency:
    """A residency for `count` versions a0, a1, … of equal size, of which `slots` fit."""
    return FakeResidency(slots * 10, slots, {f"a{i}": 10 for i in range(count)}, **how)


# ---- batching


def test_a_request_goes_from_prefill_to_its_last_token() -> None:
    world = World()
    world.scheduler.add(request("r", 5, max_tokens=3))
    assert [shape(world.step()) for _ in range(4)] == [
        [("r", 0, 5)],
        [("r", 5, 1)],
        [("r", 6, 1)],
        [],
    ]
    assert world.ended == {("r", 0): Finish("length")}
    assert world.tokens["r", 0] == [5, 6, 7]


def test_a_long_prompt_is_computed_in_chunks_of_what_decodes_leave() -> None:
    world = World()
    world.scheduler.add(request("short", 3, max_tokens=9))
    world.step()
    world.scheduler.add(request("long", 40))
    assert shape(world.step()) == [("short", 3, 1), ("long", 0, 15)]
    assert shape(world.step()) == [("short", 4, 1), ("long", 15, 15)]
    assert shape(world.step()) == [("short", 5, 1), ("long", 30, 10)]
    assert shape(world.step()) == [("short", 6, 1), ("long", 40, 1)]


@pytest.mark.parametrize(("prompt", "chunks"), [(8, [2, 2, 2, 2]), (7, [2, 2, 3]), (3, [3])])
def test_a_paced_prompt_is_computed_little_by_little(prompt: int, chunks: list[int]) -> None:
    world = World()
    world.scheduler.add(request("other", 4, 20))
    world.scheduler.add(structs.replace(request("paced", prompt, 2), pace=2))
    world.run()
    counts = [count for step in world.trace for name, _, _, count in step if name == "paced"]
    assert counts == [*chunks, 1]
    assert world.ended["paced", 0].reason == "length"


def test_no_more_than_max_num_seqs_run() -> None:
    world = World(limits(max_num_seqs=2))
    for name in "abc":
        world.scheduler.add(request(name))
    assert [name for name, _, _ in shape(world.step())] == ["a", "b"]
    assert (world.scheduler.running, world.scheduler.waiting) == (2, 1)
    world.run()


def test_queueing_is_timed_from_arrival_to_the_first_step() -> None:
    world = World(limits(max_num_seqs=1), adapters(load_steps=2))
    for name, adapter in (("first", None), ("second", None), ("third", "a0")):
        world.scheduler.add(request(name, max_tokens=2, adapter=adapter))
    waited = {}
    for _ in range(9):
        for item in world.step(seconds=1.0).items:
            waited.setdefault(item.seq.request.id, item.seq.queue_seconds)
    assert waited == {"first": 1.0, "second": 3.0, "third": 5.0}


def test_a_preemption_is_no_queueing() -> None:
    world = World(limits(num_pages=6))
    world.scheduler.add(request("early", 8, max_tokens=8))
    world.scheduler.add(request("late", 8, max_tokens=8))
    waited = set()
    while world.scheduler.running or world.scheduler.waiting:
        waited |= {item.seq.queue_seconds for item in world.step(seconds=1.0).items}
    assert world.scheduler.preemptions
    assert waited == {1.0}


def test_work_that_can_wait_lets_a_tenants_own_requests_go_first() -> None:
    """As evaluations run: by the tenant's background, in the batches of everybody."""
    own = TenantContext("tenant")
    world = World(limits(max_num_seqs=4))
    for number in range(20):
        examined = request(f"examined-{number}", 8)
        world.scheduler.add(structs.replace(examined, tenant=own.background))
    world.step()
    world.step()
    for number in range(6):
        world.scheduler.add(request(f"asked-{number}", 8))
    begun: list[str] = []
    while "asked-5" not in begun:
        begun += [name for name, start, _ in shape(world.step()) if start == 0]
    assert begun[:5] == [f"asked-{number}" for number in range(5)]
    assert len(begun) <= 7  # a tenth of the turns is the background's
    world.run()


def test_nothing_to_do_is_an_empty_plan() -> None:
    plan = World().step()
    assert not plan
    assert plan.rows == 0


def test_a_prompt_without_an_answer_ends_when_it_is_computed() -> None:
    world = World()
    world.scheduler.add(request("r", 20, max_tokens=0, prompt_logprobs=1))
    plans = [world.step(), world.step()]
    assert [item.samples for plan in plans for item in plan.items] == [False, False]
    assert world.ended == {("r", 0): Finish("length")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_num_seqs": 0}, "at least 1"),
        ({"page_size": 0}, "at least 1"),
        (
            {"max_num_seqs": 17},
            r"max_num_batched_tokens \(16\) must be at least max_num_seqs \(17\)",
        ),
        ({"patience": 0}, "patience"),
    ],
)
def test_limits_that_cannot_work_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        limits(**changes)


def test_the_id_of_a_living_request_is_taken() -> None:
    world = World()
    world.scheduler.add(request("r"))
    with pytest.raises(ValueError, match="request r is here already"):
        world.scheduler.add(request("r"))


# ---- what can never be served


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "config", "code"),
    [
        (0, 4, limits(), "invalid_parameter"),
        (128, 1, limits(), "context_length_exceeded"),
        (129, 0, limits(), "context_length_exceeded"),
        (128, 0, limits(), None),
        (127, 9, limits(), None),
        (33, 1, limits(num_pages=9), "context_length_exceeded"),
        (30, 4, limits(num_pages=9), "context_length_exceeded"),
        (30, 3, limits(num_pages=9), None),
    ],
)
def test_what_can_never_fit_ends_at_once(
    prompt: int, max_tokens: int, config: Limits, code: str | None
) -> None:
    world = World(config)
    world.scheduler.add(request("r", prompt, max_tokens, n=2))
    world.settle()
    if code:
        assert world.ended == {("r", i): Finish("error", error=code) for i in range(2)}
    world.run()
    assert len(world.ended) == 2


@pytest.mark.parametrize("digest", ["huge", "broken"])
def test_an_adapter_that_cannot_come_ends_its_requests(digest: str) -> None:
    residency = FakeResidency(20, 2, {"huge": 21, "broken": 1, "good": 20}, broken={"broken"})
    world = World(residency=residency)
    world.scheduler.add(request("r", adapter=digest, n=2))
    world.scheduler.add(request("s", adapter="good"))
    world.run()
    refused = Finish("error", error="adapter_invalid")
    assert (world.ended["r", 0], world.ended["r", 1]) == (refused, refused)
    assert world.ended["s", 0] == Finish("length")


# ---- pages


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


# ---- adapters in a step


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


# ---- aborts


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


# ---- fairness


def backlog(
    world: World, tenant: str, weight: float, prompt: int, answer: int
) -> Callable[[], None]:
    """Keeps more requests of a tenant waiting than can begin in a step."""
    number = 0

    def fill() -> None:
        nonlocal number
        waiting = sum(seq.tenant.id == tenant for seq in world.scheduler._queue)
        for _ in range(5 - waiting):
            number += 1
            world.scheduler.add(
                request(f"{tenant}-{number}", prompt, answer, tenant=tenant, weight=weight)
            )

    return fill


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize(("prompt", "answer"), [(40, 2), (4, 24), (60, 1)])
def test_two_backlogged_tenants_differ_by_a_bounded_number_of_tokens(
    weight: float, prompt: int, answer: int
) -> None:
    config = limits(max_num_seqs=4)
    world = World(config, root=None)
    light = backlog(world, "light", weight, 6, 6)
    heavy = backlog(world, "heavy", 1.0, prompt, answer)
    served: Counter[str] = Counter()
    reached: Counter[tuple[str, int]] = Counter()
    worst = 0.0
    for _ in range(2500):
        heavy()
        light()
        for item in world.step().items:
            seq, child = item.seq, (item.seq.request.id, item.seq.index)
            stop = item.start + item.count
            served[seq.tenant.id] += max(0, stop - max(item.start, reached[child]))
            reached[child] = max(reached[child], stop)
        worst = max(worst, abs(served["heavy"] - served["light"] / weight))
    longest = prompt + answer
    assert worst <= 2 * config.max_num_seqs * longest / min(1.0, weight)
    assert min(served.values()) > 20 * worst


def test_a_tenant_with_a_long_queue_does_not_delay_another_ones_first_token() -> None:
    world = World(limits(max_num_seqs=4))
    for number in range(50):
        world.scheduler.add(request(f"heavy-{number}", 30, max_tokens=4, tenant="heavy"))
    for _ in range(30):
        world.step()
    world.scheduler.add(request("light", 4, max_tokens=1, tenant="light"))
    assert world.until(lambda: ("light", 0) in world.ended) <= 10


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

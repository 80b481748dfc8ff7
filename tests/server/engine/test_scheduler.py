"""From arrival to the last token: batching, chunks, and what is refused at once."""

import pytest
from fake_residency import FakeResidency
from msgspec import structs
from scheduling import World, adapters, limits, request, shape

from weft.adapters.tenancy import TenantContext
from weft.server.engine.limits import Limits
from weft.server.engine.sequence import Finish


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
    world.step()
    world.scheduler.add(structs.replace(request("paced", prompt, 2), pace=2))
    world.run()
    counts = [count for step in world.trace for name, _, _, count in step if name == "paced"]
    assert counts == [*chunks, 1]
    assert world.ended["paced", 0].reason == "length"


def test_paced_prompts_take_turns_beside_decodes_and_are_computed_at_once_without() -> None:
    world = World()
    world.scheduler.add(request("other", 4, 4))
    world.step()
    for name in "abc":
        world.scheduler.add(structs.replace(request(name, 4, 1), pace=2))
    steps = [[(name, count) for name, _, count in shape(world.step())] for _ in range(4)]
    assert steps == [
        [("other", 1), ("a", 2)],
        [("other", 1), ("a", 2)],
        [("other", 1), ("b", 2)],
        [("b", 2), ("c", 4)],
    ]
    world.run()


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

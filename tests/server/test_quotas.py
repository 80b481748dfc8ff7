"""Rates on a clock that stands still until told, and turns in their order."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.server.errors import ApiError
from weft.server.policy import Quotas
from weft.server.quotas import Account, Rate, Turns


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_worth_at_once_then_as_it_comes() -> None:
    clock = Clock()
    rate = Rate(clock)
    assert [rate.take(20, 60) for _ in range(4)] == [0, 0, 0, 20]
    clock.now += 19
    assert rate.take(20, 60) == pytest.approx(1)
    clock.now += 1
    assert rate.take(20, 60) == 0
    assert rate.take(1, 60) == 1
    clock.now += 1e6
    assert [rate.take(60, 60), rate.take(1, 60)] == [0, 1]


def test_what_was_not_used_can_be_taken_again_but_never_more_than_a_minutes_worth() -> None:
    rate = Rate(Clock())
    assert rate.take(60, 60) == 0
    rate.give_back(30)
    assert [rate.take(30, 60), rate.take(1, 60)] == [0, 1]
    rate.give_back(1000)
    assert [rate.take(60, 60), rate.take(1, 60)] == [0, 1]


def test_a_limit_may_come_change_and_go() -> None:
    rate = Rate(Clock())
    assert rate.take(10**9, None) == 0
    rate.give_back(5)
    assert [rate.take(10, 10), rate.take(1, 10)] == [0, 6]
    assert rate.take(1, 60) == 1
    assert rate.take(10**9, None) == 0
    assert rate.take(10, 10) == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(1, 50), st.booleans()), min_size=1, max_size=60
    ),
    st.integers(50, 500),
)
def test_never_more_than_the_limit_beyond_what_a_minute_saved(
    steps: list[tuple[float, int, bool]], limit: int
) -> None:
    """Over any stretch: at most one minute's worth plus what the time that passed gives."""
    clock = Clock()
    rate, taken, start = Rate(clock), 0, clock.now
    for seconds, amount, given_back in steps:
        clock.now += seconds
        wait = rate.take(amount, limit)
        if not wait:
            taken += amount
            if given_back:
                rate.give_back(amount)
                taken -= amount
        else:
            clock.now += wait + 1e-6
            assert rate.take(amount, limit) == 0, "what it told to wait was enough"
            taken += amount
        assert taken <= limit + (clock.now - start) * limit / 60 + 1e-3


def account(quotas: Quotas, clock: Clock | None = None) -> Account:
    return Account(lambda: quotas, clock or Clock())


def test_a_refusal_says_which_limit_and_when_to_come_back() -> None:
    mine = account(Quotas(requests_per_minute=2, tokens_per_minute=600))
    for _ in range(2):
        mine.count_request()
    mine.charge(600)
    for ask, seconds, words in (
        (mine.count_request, "30", "2 requests"),
        (lambda: mine.charge(5), "1", "600 tokens"),
        (lambda: mine.charge(101), "11", "600 tokens"),
    ):
        with pytest.raises(ApiError, match="rate_limit_exceeded") as caught:
            ask()
        assert caught.value.headers["Retry-After"] == seconds
        assert words in str(caught.value.body("r")["error"]["message"])


def test_what_no_minute_allows_is_a_400() -> None:
    with pytest.raises(ApiError, match="invalid_parameter") as caught:
        account(Quotas(tokens_per_minute=600)).charge(601)
    assert caught.value.param == "max_tokens"


async def test_work_that_can_wait_does_not_wait_where_there_is_no_quota() -> None:
    async with asyncio.timeout(10):
        await account(Quotas()).pay(10**12)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Queue:
    """Tasks that hold turns until they are told to go."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.turns = Turns(lambda: self.limit)
        self.computed: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, count: int = 1) -> None:
        self._gates[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._visit(name, count))
        await settle()

    async def go(self, name: str) -> None:
        self._gates[name].set()
        await settle()

    async def give_up(self, name: str) -> None:
        self._tasks[name].cancel()
        await settle()

    async def pass_by(self, goes: str, gives_up: str) -> None:
        """One gives up at the moment at which its turn comes, as another has ended."""
        self._gates[goes].set()
        await self.give_up(gives_up)
        await self._tasks[goes]

    async def _visit(self, name: str, count: int) -> None:
        async with self.turns.turn(count):
            self.computed.append(name)
            await self._gates[name].wait()


async def test_turns_are_given_in_order_as_many_as_fit() -> None:
    queue = Queue(limit=3)
    for name, count in (("a", 2), ("b", 2), ("c", 1)):
        await queue.come(name, count)
    assert queue.computed == ["a"]  # c would fit, and is not let past b
    await queue.go("a")
    assert queue.computed == ["a", "b", "c"]
    await queue.go("b")
    await queue.go("c")
    assert queue.turns.taken == 0


async def test_who_gives_up_frees_its_place_in_the_line() -> None:
    queue = Queue(limit=1)
    for name in "abc":
        await queue.come(name)
    await queue.give_up("b")
    await queue.give_up("a")
    assert queue.computed == ["a", "c"]
    await queue.go("c")
    assert queue.turns.taken == 0


async def test_who_gives_up_as_its_turn_comes_passes_it_on() -> None:
    queue = Queue(limit=1)
    for name in "abc":
        await queue.come(name)
    await queue.pass_by("a", "b")
    assert queue.computed == ["a", "c"]
    await queue.go("c")
    assert queue.turns.taken == 0


async def test_a_limit_that_changed_holds_from_the_next_change_on() -> None:
    queue = Queue(limit=1)
    for name in "abc":
        await queue.come(name)
    queue.limit = None
    await queue.come("d")
    assert sorted(queue.computed) == ["a", "b", "c", "d"]


async def test_what_never_fits_any_more_goes_alone() -> None:
    queue = Queue(limit=2)
    await queue.come("a", 2)
    await queue.come("b", 2)
    queue.limit = 1
    await queue.go("a")
    await queue.come("c")
    assert queue.computed == ["a", "b"]
    await queue.go("b")
    assert queue.computed == ["a", "b", "c"]

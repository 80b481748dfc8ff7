"""Four times more requests than an engine computes: who is served, and who is told to come back.

`tests/soak` does it with a real engine, by the clock.
"""

import asyncio
from collections import Counter, deque
from pathlib import Path

import httpx
from api_server import BASE, Api, api
from fake_engine import FakeEngine
from tenants_files import tenants_file

TENANTS = [f"tenant{number}" for number in range(8)]
PLACES = 32
CAPACITY = 16
"""Tokens that the engine computes in a tick."""
TOKENS = 8
OFFERED = 8
"""Requests in a tick, one of each tenant: four times what the engine computes."""
TICKS = 60


class Turns:
    """The engine's pace: whoever has waited longest computes a token when it is told to."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def __call__(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn

    def give(self, turns: int) -> int:
        """Lets so many go on, or all that wait; returns how many."""
        given = min(turns, len(self.waiting))
        for _ in range(given):
            self.waiting.popleft().set_result(None)
        return given


async def settle(asked: list[asyncio.Task[httpx.Response]], turns: Turns) -> None:
    """Lets all run until each is answered or waits for the engine."""
    while sum(task.done() for task in asked) + len(turns.waiting) < len(asked):  # noqa: ASYNC110
        await asyncio.sleep(0)


async def overload(made: Api, turns: Turns) -> tuple[dict[str, list[httpx.Response]], list[int]]:
    """The answers of each tenant, and the tokens computed in each tick while requests came."""
    clients = {t: made.client(authorization=f"Bearer key-{t}") for t in TENANTS}
    body = {"model": BASE, "prompt": [7] * 4, "max_tokens": TOKENS, "ignore_eos": True}
    asked: dict[str, list[asyncio.Task[httpx.Response]]] = {tenant: [] for tenant in TENANTS}
    every: list[asyncio.Task[httpx.Response]] = []
    computed = []
    for tick in range(TICKS):
        for number in range(OFFERED):
            tenant = TENANTS[(tick + number) % len(TENANTS)]
            task = asyncio.create_task(clients[tenant].post("/v1/completions", json=body))
            asked[tenant].append(task)
            every.append(task)
        await settle(every, turns)
        assert made.services.admission.inside <= PLACES
        computed.append(turns.give(CAPACITY))
        await settle(every, turns)
    while turns.give(CAPACITY):
        await settle(every, turns)
    answers = {tenant: [await task for task in tasks] for tenant, tasks in asked.items()}
    for client in clients.values():
        await client.aclose()
    return answers, computed


async def test_what_is_too_much_is_refused_at_once_and_the_rest_is_served(tmp_path: Path) -> None:
    turns = Turns()
    engine = FakeEngine(pace=turns)
    tenants = tenants_file(tmp_path, **{tenant: f"key-{tenant}" for tenant in TENANTS})
    with api(tmp_path, engine, tenants=tenants, max_num_seqs=16, max_queue=PLACES - 16) as made:
        answers, computed = await overload(made, turns)
        made.check()
    every = [answer for told in answers.values() for answer in told]
    statuses = Counter(answer.status_code for answer in every)
    assert statuses.keys() == {200, 429}
    assert len(engine.requests) == statuses[200]  # nothing that was refused reached the engine
    assert 2.5 < len(every) / statuses[200] < 4.0
    for answer in every:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
        else:
            assert answer.json()["usage"]["completion_tokens"] == TOKENS
    assert sum(computed[4:]) >= 0.9 * CAPACITY * len(computed[4:])
    served = [sum(answer.status_code == 200 for answer in told) for told in answers.values()]
    assert min(served) * 2 > max(served)

"""Four times more requests than a server computes, and one tenant at ten times its share.

By the clock, on a real server that shares a core with its clients; the figures are kept.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from time import monotonic
from typing import Any

import pytest
from processes import engine_of, resident_bytes
from raw_stream import Answer, post
from soak_results import keep
from tenants_files import tenants_file
from tiny_models import save_tiny
from weft_process import WeftProcess

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
TENANTS = [f"tenant{number}" for number in range(8)]
PLACES, RUNNING = 32, 16
PROMPT, ANSWER, SHORT = 32, 128, 32
PEAK_SECONDS, OVERLOAD_SECONDS, FAIR_SECONDS = 10, 30, 20
OVERLOAD = 4
MODEL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
"""So large that an engine's step, not the clients, is what takes most of the core."""
LIGHT_SHARE = 0.5
"""Of its share, what a light tenant asks for."""
HEAVY_SHARES = 10


class Server:
    """A server with eight tenants, and its tenants' clients."""

    def __init__(self, process: WeftProcess) -> None:
        self._url = process.url
        self._pids = process.pid, engine_of(process.pid)
        self._asked = 0

    @property
    def resident(self) -> int:
        """Bytes of the server's processes."""
        return sum(map(resident_bytes, self._pids))

    async def ask(self, tenant: str, tokens: int = ANSWER) -> Answer:
        """One streamed request."""
        self._asked += 1
        body: dict[str, Any] = {
            "model": "base",
            "prompt": [5 + (self._asked * 31 + place) % 500 for place in range(PROMPT)],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        answer = await post(self._url, "/v1/completions", f"key-{tenant}", body)
        if answer.status == 200:
            assert b"data: [DONE]" in answer.body[-64:], answer.body[-200:]
        else:
            assert json.loads(answer.body)["error"]["code"] == "queue_full"
        return answer

    async def keep_busy(self, clients: int, seconds: float, tokens: int = ANSWER) -> list[Answer]:
        """So many clients, one request after another."""
        until = monotonic() + seconds

        async def client(number: int) -> list[Answer]:
            answers = []
            while monotonic() < until:
                answers.append(await self.ask(TENANTS[number % len(TENANTS)], tokens))
            return answers

        told = await asyncio.gather(*map(client, range(clients)))
        return [answer for answers in told for answer in answers]

    async def offer(
        self, tenant: str, rate: float, seconds: float, tokens: int = ANSWER
    ) -> list[Answer]:
        """So many requests a second, whatever becomes of them; not all tenants' at one time."""
        began = monotonic() + TENANTS.index(tenant) / len(TENANTS) / rate
        tasks = []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - monotonic()))
            tasks.append(asyncio.create_task(self.ask(tenant, tokens)))
        return list(await asyncio.gather(*tasks))


@contextmanager
def serving(folder: Path, *more: object) -> Iterator[Server]:
    model = save_tiny("llama", folder / "base", **MODEL)
    keys = {tenant: f"key-{tenant}" for tenant in TENANTS}
    flags: list[object] = ["--tenants", tenants_file(folder, **keys), "--dtype", "float32"]
    flags += ["--max-num-seqs", RUNNING]
    with WeftProcess("serve", model, *flags, *more, state=folder / "state") as process:
        yield Server(process)


def served(answers: list[Answer], begin: float, end: float) -> float:
    """Answers a second that were completed between two times."""
    done = [a for a in answers if a.status == 200 and begin <= a.end < end]
    return len(done) / (end - begin)


def percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1]


async def peak(server: Server, tokens: int = ANSWER) -> float:
    """Answers a second when it always has enough to do, and never too much."""
    began = monotonic()
    answers = await server.keep_busy(RUNNING + len(TENANTS), PEAK_SECONDS, tokens)
    assert {answer.status for answer in answers} == {200}
    return served(answers, began + 1, began + PEAK_SECONDS)


async def test_too_many_requests(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-queue", PLACES - RUNNING) as server:
        await server.keep_busy(RUNNING, 3)
        rate = await peak(server)
        before = server.resident
        began = monotonic()
        each = OVERLOAD * rate / len(TENANTS)
        told = await asyncio.gather(
            *(server.offer(tenant, each, OVERLOAD_SECONDS) for tenant in TENANTS)
        )
        grown = server.resident - before
    answers = [answer for answers in told for answer in answers]
    goodput = served(answers, began + 1, began + OVERLOAD_SECONDS) / rate
    refused = [answer for answer in answers if answer.status == 429]
    seconds = [answer.end - answer.begin for answer in refused]
    fewest, most = (pick(sum(a.status == 200 for a in t) for t in told) for pick in (min, max))
    keep(
        "overload",
        {
            "tenants": len(TENANTS),
            "peak_answers_a_second": rate,
            "offered_to_peak": OVERLOAD,
            "statuses": Counter(answer.status for answer in answers),
            "goodput_to_peak": goodput,
            "refusal_seconds": {"median": median(seconds), "p99": percentile(seconds, 99)},
            "resident_bytes": {"before": before, "grown": grown},
            "fewest_to_most_served_of_a_tenant": fewest / most,
        },
    )
    assert {answer.status for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert goodput >= 0.9
    assert grown <= 32 << 20
    assert percentile(seconds, 99) <= 0.05
    assert fewest * 2 >= most


async def test_a_heavy_tenant(tmp_path: Path) -> None:
    *light, heavy = TENANTS
    with serving(tmp_path) as server:
        await server.keep_busy(RUNNING, 3)
        share = await peak(server, SHORT) / len(TENANTS)

        async def ask_lightly() -> list[float]:
            rate = LIGHT_SHARE * share
            told = await asyncio.gather(
                *(server.offer(t, rate, FAIR_SECONDS, SHORT) for t in light)
            )
            answers = [answer for answers in told for answer in answers]
            assert {answer.status for answer in answers} == {200}
            return [answer.first - answer.begin for answer in answers]

        quiet = await ask_lightly()
        loud, pushed = await asyncio.gather(
            ask_lightly(), server.offer(heavy, HEAVY_SHARES * share, FAIR_SECONDS, SHORT)
        )
    ratio = percentile(loud, 99) / percentile(quiet, 99)
    keep(
        "heavy-tenant",
        {
            "light_tenants": len(light),
            "light_asks_for_shares": LIGHT_SHARE,
            "heavy_asks_for_shares": HEAVY_SHARES,
            "heavy_statuses": Counter(answer.status for answer in pushed),
            "light_requests": {"quiet": len(quiet), "loud": len(loud)},
            "light_first_token_seconds": {
                when: {"median": median(seconds), "p99": percentile(seconds, 99)}
                for when, seconds in (("quiet", quiet), ("loud", loud))
            },
            "p99_loud_to_quiet": ratio,
        },
    )
    assert ratio <= 2

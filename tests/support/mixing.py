"""Many tenants at once, each with adapters of equal names, and who answered whom.

16 tenants have two adapters each, `plain` and `fancy`, in a device pool for four of all of them.
Every answer is compared, token by token, with what transformers says of the version that it names.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx
from markers import (
    FIRST_MARK,
    MarkedAnswers,
    marks,
    save_marked_base,
    save_marker,
    weights_bytes,
)
from replacing import Asked, History, Put
from tenants_files import tenants_file
from tiny_models import VOCAB_SIZE
from whole_server import WholeServer, whole_server

from weft.server.engine.messages import Stats

TENANTS = [f"tenant{number}" for number in range(16)]
NAMES = ("plain", "fancy")
ROOM = 4
"""How many adapters the device holds at a time."""
CLIENTS = 32
LONGEST = 24
BETWEEN = 50
"""Requests between two replacements."""
ABORTED = 0.05
_PAGE_SIZE, _PAGES, _PAGE_BYTES = 4, 256, 2048
_PREFIX, _TAIL, _PROMPTS = 20, 4, 8
_SHARED = 3
"""Of so many prompts one begins like no other."""


def prompts() -> list[list[int]]:
    """Token ids of one length; most begin alike for some pages."""
    draw = Random(0)

    def some(number: int) -> list[int]:
        return draw.choices(range(5, VOCAB_SIZE), k=number)

    shared = some(_PREFIX)
    return [
        (some(_PREFIX) if number % _SHARED == 0 else shared) + some(_TAIL)
        for number in range(_PROMPTS)
    ]


@dataclass(frozen=True)
class Marker:
    """An adapter's files. number: whose tokens it answers in"""

    folder: Path
    number: int


@dataclass
class Mixed:
    """What was asked and answered. histories: by tenant and name; the base's name is empty"""

    histories: dict[tuple[str, str], History]
    markers: dict[str, Marker]
    aborted: int = 0
    replaced: int = 0
    most_resident: int = 0
    failures: list[httpx.Response] = field(default_factory=list)

    @property
    def asked(self) -> list[Asked]:
        return [asked for history in self.histories.values() for asked in history.asked]

    @property
    def stale(self) -> list[Asked]:
        """Answers by a version that was not the name's at any moment of the request."""
        named = (history for (_, name), history in self.histories.items() if name)
        return [asked for history in named for asked in history.stale]

    @property
    def foreign(self) -> list[Asked]:
        """Answers that hold a token of another adapter than the one that they name."""
        return [asked for asked in self.asked if any(map(self._foreign(asked), asked.tokens))]

    @property
    def wrong(self) -> list[Asked]:
        """Answers that differ in a token from those of the version that they name, run alone."""
        alone = MarkedAnswers(prompts(), LONGEST)
        digests = {asked.digest for asked in self.asked}
        folders = {d: self.markers[d].folder if d in self.markers else None for d in digests}
        expected = {digest: alone.of(folder) for digest, folder in folders.items()}
        return [
            asked
            for asked in self.asked
            if asked.tokens != expected[asked.digest][int(asked.prompt)][: len(asked.tokens)]
        ]

    def _foreign(self, asked: Asked) -> Any:
        marker = self.markers.get(asked.digest)
        if marker is None:
            return lambda token: token >= FIRST_MARK
        return lambda token: token not in marks(marker.number)


class Mixing:
    """The server, its tenants' clients, and two versions of each adapter that take turns."""

    def __init__(
        self, server: WholeServer, clients: dict[str, httpx.AsyncClient], folder: Path
    ) -> None:
        self._server, self._clients, self._folder = server, clients, folder
        self._clock = count()
        self._answers = 0
        self._turn = asyncio.Event()
        self._versions: dict[tuple[str, str], Iterator[Marker]] = {}
        self._puts = {(t, name): asyncio.Lock() for t in TENANTS for name in NAMES}
        keys = [*self._puts, *((tenant, "") for tenant in TENANTS)]
        self.seen = Mixed({key: History({}) for key in keys}, {})

    async def install(self) -> None:
        """Puts the first version of each adapter."""
        for number, (tenant, name) in enumerate(self._puts):
            numbers = (number, number + len(self._puts))
            markers = [Marker(self._folder / f"marker-{n}", n) for n in numbers]
            self._versions[tenant, name] = (markers[turn % 2] for turn in count())
            await self._put(tenant, name)

    async def run(self, requests: int, seed: int) -> Mixed:
        """So many requests by all clients; some are left before they are answered."""
        draw = Random(seed)
        numbers = iter(range(requests))
        await asyncio.gather(*(self._client(numbers, draw) for _ in range(CLIENTS)))
        return self.seen

    async def _client(self, numbers: Iterator[int], draw: Random) -> None:
        for number in numbers:
            if number % BETWEEN == BETWEEN - 1:
                await self._put(*draw.choice(list(self._puts)))
                self.seen.replaced += 1
            tenant = draw.choice(TENANTS)
            name = draw.choice(["", *NAMES, *NAMES, *NAMES])
            body = _body(draw, name)
            leave_after = draw.randint(1, 12) if draw.random() < ABORTED else None
            if leave_after is None:
                await self._ask(tenant, name, body)
            elif await self._leave(asyncio.create_task(self._ask(tenant, name, body)), leave_after):
                self.seen.aborted += 1
            self._look()

    async def _leave(self, asking: asyncio.Task[None], answers: int) -> bool:
        """Gives up after so many answers to others; returns whether it was not answered yet."""
        until = self._answers + answers
        while self._answers < until and not asking.done():
            turn = asyncio.create_task(self._turn.wait())
            await asyncio.wait([asking, turn], return_when=asyncio.FIRST_COMPLETED)
            turn.cancel()
        left = not asking.done() and asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled():
            asking.result()
        return left

    async def _ask(self, tenant: str, name: str, body: dict[str, Any]) -> None:
        begin = next(self._clock)
        answer = await self._clients[tenant].post(
            "/v1/completions", json=body | {"prompt": prompts()[body["prompt"]]}
        )
        end = next(self._clock)
        self._answers += 1
        self._turn.set()
        self._turn = asyncio.Event()
        if answer.status_code != 200:
            self.seen.failures.append(answer)
            return
        digest = answer.headers.get("x-adapter-digest", "") if name else ""
        for tokens in _tokens(answer, body):
            assert len(tokens) == body["max_tokens"], answer.text
            asked = Asked(begin, end, str(body["prompt"]), 200, digest, tokens, 0.0)
            self.seen.histories[tenant, name].asked.append(asked)

    async def _put(self, tenant: str, name: str) -> None:
        async with self._puts[tenant, name]:
            marker = next(self._versions[tenant, name])
            begin = next(self._clock)
            answer = await self._clients[tenant].put(
                f"/v1/adapters/{name}", json={"path": str(marker.folder)}
            )
            assert answer.status_code == 200, answer.text
            digest = answer.json()["digest"]
            self.seen.markers[digest] = marker
            self.seen.histories[tenant, name].puts.append(Put(begin, next(self._clock), digest))

    @property
    def stats(self) -> Stats:
        """The engine's latest."""
        stats = self._server.services.engine.stats
        assert stats is not None
        return stats

    def _look(self) -> None:
        stats = self.stats
        assert stats.broken_invariants == ()
        resident = sum(adapter.tier == "device" for adapter in stats.adapters)
        self.seen.most_resident = max(self.seen.most_resident, resident)


def _body(draw: Random, name: str) -> dict[str, Any]:
    """A request by one number of `prompts`."""
    return {
        "model": name or "base",
        "prompt": draw.randrange(_PROMPTS),
        "max_tokens": draw.randint(1, LONGEST),
        "n": draw.choice([1] * 9 + [2]),
        "stream": draw.random() < 0.3,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def _tokens(answer: httpx.Response, body: dict[str, Any]) -> list[tuple[int, ...]]:
    """The tokens of each choice, also of an answer that came in pieces."""
    pieces = [answer.text]
    if body["stream"]:
        *pieces, done, rest = (line.removeprefix("data: ") for line in answer.text.split("\n\n"))
        assert (done, rest) == ("[DONE]", "")
    tokens: dict[int, list[int]] = {index: [] for index in range(body["n"])}
    for choice in (choice for piece in pieces for choice in json.loads(piece)["choices"]):
        tokens[choice["index"]] += choice["token_ids"]
    return [tuple(told) for told in tokens.values()]


@asynccontextmanager
async def mixing(folder: Path) -> AsyncIterator[Mixing]:
    """The server with its tenants and adapters; it is checked that it holds nothing at the end."""
    opened = folder / "open"
    markers = [save_marker(opened / f"marker-{n}", n) for n in range(2 * len(TENANTS) * len(NAMES))]
    size = weights_bytes(markers[0])
    config = {
        "page_size": _PAGE_SIZE,
        "kv_cache_memory": _PAGES * _PAGE_BYTES,
        "adapter_memory": ROOM * size + size // 2,
    }
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            whole_server(
                save_marked_base(folder / "base"),
                folder / "state",
                config,
                tenants=tenants_file(folder, **{tenant: f"key-{tenant}" for tenant in TENANTS}),
                adapter_root=(opened,),
                keep_versions=2,
            )
        )
        clients = {
            tenant: await stack.enter_async_context(
                server.client(authorization=f"Bearer key-{tenant}")
            )
            for tenant in TENANTS
        }
        made = Mixing(server, clients, opened)
        await made.install()
        yield made

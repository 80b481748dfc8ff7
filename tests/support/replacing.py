"""Replaces an adapter again and again while clients use it, and looks for wrong answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter

import httpx
from peft_adapters import save_lora
from tiny_models import save_tiny
from whole_server import whole_server

from weft.server.engine.launch import Launched, launch_thread
from weft.server.services import Services

HOT = "hot"
VERSIONS = 5
ROOM = 3
"""How many of them the device holds at a time."""
TOKENS = 12
PROMPTS = [f"{'the same beginning ' * 3}{number}" for number in range(6)]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: when it began and ended on the common clock, and what it was answered.

    status: 200 only where all of the answer came   seconds: until then
    """

    begin: int
    end: int
    prompt: str
    status: int
    digest: str
    tokens: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Put:
    """A replacement: when it began and ended, and by what."""

    begin: int
    end: int
    digest: str


@dataclass
class History:
    """What clients and the one who replaces saw; `expected` by digest and prompt."""

    expected: dict[str, dict[str, tuple[int, ...]]]
    asked: list[Asked] = field(default_factory=list)
    puts: list[Put] = field(default_factory=list)

    @property
    def failed(self) -> list[Asked]:
        """Requests that were not answered."""
        return [asked for asked in self.asked if asked.status != 200]

    @property
    def mixed(self) -> list[Asked]:
        """Answers that are not, token by token, those of the version that they name."""
        return [
            asked
            for asked in self.asked
            if asked.status == 200 and self.expected[asked.digest][asked.prompt] != asked.tokens
        ]

    @property
    def stale(self) -> list[Asked]:
        """Answers by a version that was not the name's at any moment of the request."""
        return [
            asked
            for asked in self.asked
            if asked.status == 200 and asked.digest not in self._possible(asked)
        ]

    def _possible(self, asked: Asked) -> set[str]:
        before = [put for put in self.puts if put.end < asked.begin]
        during = {
            put.digest for put in self.puts if put.end >= asked.begin and put.begin <= asked.end
        }
        return during | ({before[-1].digest} if before else set())


class Replacing:
    """A server whose adapter `hot` has some versions to be replaced by."""

    def __init__(self, client: httpx.AsyncClient, services: Services, folders: list[Path]) -> None:
        self.client, self.services, self.folders = client, services, folders
        self._clock = count()

    async def history(self) -> History:
        """Asks each version in peace for what it answers, and begins with the first one."""
        expected: dict[str, dict[str, tuple[int, ...]]] = {}
        for folder in self.folders:
            digest = (await self._put(HOT, folder)).digest
            answers = [await self.ask(prompt) for prompt in PROMPTS]
            assert {answer.digest for answer in answers} == {digest}
            expected[digest] = {answer.prompt: answer.tokens for answer in answers}
        told = [tuple(answers.values()) for answers in expected.values()]
        assert len(set(told)) == len(self.folders), "versions cannot be told apart"
        history = History(expected)
        history.puts.append(await self._put(HOT, self.folders[0]))
        return history

    async def replace(self, history: History, number: int) -> None:
        """Puts version `number`, counted round and round."""
        history.puts.append(await self._put(HOT, self.folders[number % len(self.folders)]))

    async def clients(
        self, history: History, many: int, done: Callable[[], bool], answered: Callable[[], None]
    ) -> None:
        """So many clients that ask one request after another until they are done."""

        async def client(offset: int) -> None:
            for number in count(offset):
                if done():
                    return
                history.asked.append(await self.ask(PROMPTS[number % len(PROMPTS)]))
                answered()

        await asyncio.gather(*map(client, range(many)))

    async def ask(self, prompt: str) -> Asked:
        """One request for a fixed number of greedy tokens."""
        body = {
            "model": HOT,
            "prompt": prompt,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        begin, started = next(self._clock), perf_counter()
        answer = await self.client.post("/v1/completions", json=body)
        seconds, end = perf_counter() - started, next(self._clock)
        tokens: tuple[int, ...] = ()
        if answer.status_code == 200:
            tokens = tuple(answer.json()["choices"][0]["token_ids"])
        digest = answer.headers.get("x-adapter-digest", "")
        return Asked(begin, end, prompt, answer.status_code, digest, tokens, seconds)

    async def _put(self, name: str, folder: Path) -> Put:
        begin = next(self._clock)
        answer = await self.client.put(f"/v1/adapters/{name}", json={"path": str(folder)})
        assert answer.status_code == 200, answer.text
        return Put(begin, next(self._clock), answer.json()["digest"])


@asynccontextmanager
async def replacing(
    folder: Path, launch: Callable[[], Launched] = launch_thread
) -> AsyncIterator[Replacing]:
    """A whole server with a real engine on a tiny model; nothing is held when it ends."""
    model = save_tiny("llama", folder / "model")
    folders = [
        save_lora(
            folder / "open" / str(number),
            "llama",
            seed=number,
            strength=3.0,
            r=4,
            target_modules=["q_proj", "v_proj", "down_proj"],
        )
        for number in range(VERSIONS)
    ]
    size = 2 * max((path / "adapter_model.safetensors").stat().st_size for path in folders)
    config = {"kv_cache_memory": 8 << 20, "adapter_memory": ROOM * size}
    async with (
        whole_server(
            model,
            folder / "state",
            config,
            launch=launch,
            adapter_root=(folder / "open",),
            keep_versions=2,
        ) as server,
        server.client() as client,
    ):
        yield Replacing(client, server.services, folders)

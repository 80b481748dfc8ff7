"""kill -9 of a whole server, 40 times, while a client changes adapters through HTTP."""

import asyncio
import os
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import httpx
import pytest
from peft_adapters import save_lora
from soak_results import keep_part
from tiny_models import save_tiny
from weft_process import WeftProcess

from weft.adapters.registry import Registry
from weft.adapters.store import Store

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
CYCLES, PARTS = 10, range(4)
NAMES, SEEDS = "abc", range(4)
LATEST_KILL = 1.5
"""Seconds after the first change."""

State = dict[str, tuple[int, str]]
"""Of each name, the current version's number and digest."""


@dataclass
class Client:
    """Makes random changes one after another, and knows what was answered."""

    folders: list[Path]
    random: Random
    digests: dict[int, str] = field(default_factory=dict)
    answered: State = field(default_factory=dict)
    in_flight: tuple[str, str | None] | None = None
    """The name that is being changed, and to which digest; None: it is being removed."""
    changes: Counter[str] = field(default_factory=Counter)

    async def learn_digests(self, client: httpx.AsyncClient) -> None:
        """What each folder's digest is, without storing any."""
        for seed, folder in enumerate(self.folders):
            answer = await client.put("/v1/adapters/any?dry_run=true", json={"path": str(folder)})
            self.digests[seed] = answer.json()["report"]["digest"]

    async def change(self, client: httpx.AsyncClient) -> None:
        """One change; an answer that does not come leaves it in flight."""
        name, seed = self.random.choice(NAMES), self.random.choice(SEEDS)
        if name in self.answered and self.random.random() < 0.25:
            self.in_flight = name, None
            answer = await client.delete(f"/v1/adapters/{name}")
            assert answer.status_code == 200, answer.text
            del self.answered[name]
            self.changes["removed"] += 1
        else:
            self.in_flight = name, self.digests[seed]
            body = {"path": str(self.folders[seed])}
            answer = await client.put(f"/v1/adapters/{name}", json=body)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            self.answered[name] = told["version"], told["digest"]
            self.changes["put"] += 1
        self.in_flight = None

    def check(self, found: State) -> None:
        """All that was answered is there, and what was not, whole or not at all."""
        name, digest = self.in_flight or ("", None)
        others = {n: version for n, version in self.answered.items() if n != name}
        assert {n: version for n, version in found.items() if n != name} == others
        if name and found.get(name) != self.answered.get(name):
            assert (found[name][1] if name in found else None) == digest
            self.changes["done without an answer"] += 1
        self.answered, self.in_flight = found, None


async def state_of(client: httpx.AsyncClient) -> State:
    """What the server has, once it is ready; every version is served."""
    async with asyncio.timeout(300):
        while (await client.get("/ready")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    listed: list[dict[str, Any]] = (await client.get("/v1/adapters")).json()["data"]
    for adapter in listed:
        body = {"model": adapter["name"], "prompt": "Once", "max_tokens": 1}
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-adapter-digest"] == adapter["digest"]
    return {adapter["name"]: (adapter["version"], adapter["digest"]) for adapter in listed}


@pytest.mark.parametrize("part", PARTS)
async def test_what_was_answered_is_there_after_each_kill(tmp_path: Path, part: int) -> None:
    model, began = save_tiny("llama", tmp_path / "llama"), monotonic()
    open_, state = tmp_path / "open", tmp_path / "state"
    folders = [
        save_lora(open_ / str(seed), "llama", seed=seed, r=4, target_modules=["q_proj"])
        for seed in SEEDS
    ]
    changing = Client(folders, Random(part))
    flags = ["--dtype", "float32", "--adapter-root", open_, "--state-dir", state]
    for _ in range(CYCLES):
        with WeftProcess("serve", model, *flags, state=tmp_path) as process:
            async with httpx.AsyncClient(base_url=process.url, timeout=300) as client:
                changing.check(await state_of(client))
                if not changing.digests:
                    await changing.learn_digests(client)
                after = changing.random.uniform(0, LATEST_KILL)
                asyncio.get_running_loop().call_later(after, os.kill, process.pid, signal.SIGKILL)
                with suppress(httpx.TransportError):
                    while True:
                        await changing.change(client)
            assert (await asyncio.to_thread(process.ended))[0] == -signal.SIGKILL
    registry = Registry(state / "registry.sqlite", Store(state / "versions"))
    assert registry.check() == ()
    registry.close()
    keep_part(
        "kills",
        f"seed {part}",
        {
            "cycles": CYCLES,
            "changes": changing.changes,
            "lost": 0,
            "seconds": round(monotonic() - began, 1),
        },
    )

"""The tenants' file is changed 20 times at random moments under load; some changes are broken."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from soak_results import keep
from tenants_files import key_table
from tiny_models import save_tiny
from weft_process import WeftProcess

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
RELOADS, CLIENTS, TOKENS = 20, 6, 24
LATEST = 1.0
"""Seconds after a change was taken over, of the next one."""
STAYS, GUEST, OPS = "stays", "guest", "ops"


@dataclass
class File:
    """The tenants' file, and what may be in force: of each moment, whether the guest's key is.

    known: a set for each moment at which that changed, the last one for now
    """

    path: Path
    random: Random
    known: list[set[bool]] = field(default_factory=list)
    newest: bool = False
    written: Counter[str] = field(default_factory=Counter)

    def change(self) -> str:
        """Writes it anew, whole or not at all; returns what the server has to say of it."""
        if self.known and self.random.random() < 0.25:
            text, told = "[tenants.stays\n", "refused"
        else:
            guest, told = bool(self.random.getrandbits(1)), "applied"
            weight = self.random.randint(1, 9)
            text = f"[tenants.stays]\nweight = {weight}\n" + key_table(STAYS, "s")
            text += key_table(OPS, "o", "admin") + (key_table(GUEST, "g") if guest else "")
            self.known.append({guest} | (self.known[-1] if self.known else set()))
            self.newest = guest
        new = self.path.with_suffix(".new")
        new.write_text(f"{text}# {self.written.total()}\n")
        new.replace(self.path)
        self.written[told] += 1
        return told

    def in_force(self) -> None:
        """The server has said so."""
        self.known.append({self.newest})


async def asked(client: httpx.AsyncClient, key: str) -> int:
    """The status of a stream; one that was begun comes to its end."""
    body = {"model": "llama", "prompt": "x", "max_tokens": TOKENS, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {key}"}
    async with client.stream(
        "POST", "/v1/completions", json=body | {"stream": True}, headers=headers
    ) as answer:
        lines = [line async for line in answer.aiter_lines() if line]
    assert answer.status_code != 200 or lines[-1] == "data: [DONE]"
    return answer.status_code


async def reloads(client: httpx.AsyncClient) -> Counter[str]:
    answer = await client.get("/metrics", headers={"Authorization": "Bearer o"})
    return Counter(
        {
            sample.labels["outcome"]: int(sample.value)
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == "weft_tenants_reloads_total"
        }
    )


async def test_a_tenant_that_stays_notices_nothing(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "llama", max_position_embeddings=1024)
    file = File(tmp_path / "tenants.toml", Random(0))
    file.change()
    file.in_force()
    seen: Counter[tuple[str, int]] = Counter()
    finished = False

    async def ask_on(client: httpx.AsyncClient, key: str) -> None:
        while not finished:
            since = len(file.known) - 1
            status = await asked(client, key)
            possible = set().union(*file.known[since:]) if key == "g" else {True}
            assert status in {200 if known else 401 for known in possible}
            seen[key, status] += 1

    flags = ["--dtype", "float32", "--tenants", file.path]
    with WeftProcess("serve", model, *flags, state=tmp_path) as process:
        async with httpx.AsyncClient(base_url=process.url, timeout=60) as client:
            began = monotonic()
            asking = [asyncio.create_task(ask_on(client, key)) for key in "sg" * CLIENTS]
            for _ in range(RELOADS):
                await asyncio.sleep(file.random.uniform(0, LATEST))
                before, told = await reloads(client), file.change()
                async with asyncio.timeout(30):
                    while (now := await reloads(client)) == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                assert now - before == Counter({told: 1})
                if told == "applied":
                    file.in_force()
            finished = True
            await asyncio.gather(*asking)
            seconds = monotonic() - began
    assert set(seen) == {("s", 200), ("g", 200), ("g", 401)}
    keep(
        "reloading",
        {
            "seconds": round(seconds, 1),
            "applied": file.written["applied"] - 1,
            "refused": file.written["refused"],
            "requests_of_the_tenant_that_stays": seen["s", 200],
            "requests_of_the_guest": {"answered": seen["g", 200], "401": seen["g", 401]},
            "failed": 0,
            "by_a_key_that_was_gone": 0,
        },
    )

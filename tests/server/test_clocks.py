"""The wall clock may jump: it gives dates, and no deadline, lease, order or pause depends on it."""

import ast
import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import BASE, MESSAGES, Api

ROOT = Path(__file__).parents[2]
DAY = 86_400.0
WALL = {("time", "time"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}
DATES = {
    "adapters/catalogue.py": "when versions and aliases were made",
    "adapters/registry.py": "when an adapter was used last, and which versions are too old to keep",
    "server/adapter_series.py": "vLLM's label of running adapters has its time as its value",
    "server/api/answer.py": "OpenAI's `created`",
    "server/api/models.py": "OpenAI's `created`",
    "server/api/usage.py": "the days that usage is asked for",
    "server/audit/audit.py": "when something was done",
    "server/cli/tenants.py": "when a key expires",
    "server/evaluation/evaluations.py": "when an evaluation was asked for",
    "server/tenants.py": "whether a key has expired",
    "server/usage/meter.py": "the hours that usage is counted by",
    "server/usage/usage.py": "the days that usage is kept for",
}


SOURCES = [
    path for name in ("server", "adapters", "kernels") for path in (ROOT / name).rglob("*.py")
]


def wall_clock_reads(path: Path) -> Iterator[ast.Attribute]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in WALL:
                yield node


def test_the_wall_clock_is_read_for_dates_only() -> None:
    readers = {str(path.relative_to(ROOT)) for path in SOURCES if any(wall_clock_reads(path))}
    assert readers == DATES.keys()


def test_no_module_gives_the_wall_clock_another_name() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                names = {alias.name for alias in node.names}
                assert names.isdisjoint({"time", "time_ns"}), path


async def test_days_that_come_and_go_change_no_answer_and_no_deadline(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.add("pirate")
    honest, jumps = time.time, itertools.cycle([DAY, -DAY, 0.0])
    monkeypatch.setattr(time, "time", lambda: honest() + next(jumps))
    body = {"model": "pirate", "messages": MESSAGES}
    async with api.client() as client:
        for _ in range(6):
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200
            assert (await client.get("/v1/adapters/pirate")).json()["refs"] == 0
        timed, base = {"X-Request-Timeout": "60"}, body | {"model": BASE}
        answer = await client.post("/v1/chat/completions", json=body, headers=timed)
        assert answer.status_code == 200
        api.engine.pace = asyncio.Event().wait
        timed = {"X-Request-Timeout": "0.05"}
        answer = await client.post("/v1/chat/completions", json=base, headers=timed)
        assert answer.status_code == 504
    api.check()

"""Full collections of a process that serves: few, not of what was there before, hardly needed."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from api_server import BASE, api
from starlette.requests import Request

SCRIPT = """
import gc
from weft.server.garbage import importing, spare_what_is_there

class Knot:
    def __init__(self):
        self.self = self

def young():
    return sum(isinstance(found, Knot) for found in gc.get_objects())

with importing():
    modules = [Knot() for _ in range(1000)]
    assert not gc.isenabled()
assert gc.isenabled()
assert young() == 0
lives = [Knot() for _ in range(1000)]
Knot()
spare_what_is_there()
assert young() == 0  # what lives is looked at no more, what was garbage is gone
del lives
full = gc.get_stats()[2]["collections"]
kept = [[] for _ in range(200_000)]
assert gc.get_stats()[2]["collections"] == full
del kept
for _ in range(20_000):
    Knot()
assert young() < 20_000  # later garbage is collected as ever
"""


def test_what_is_there_is_spared() -> None:
    """In a process of its own: what is spared once is never collected."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def left_for_the_collector() -> Iterator[list[object]]:
    """Afterwards: what was made meanwhile and only a collection could find."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"model": "nobody"}, 404),
        ({"max_tokens": "three"}, 400),
        ({"max_tokens": 10_000}, 400),
    ],
)
async def test_an_answer_leaves_no_cycle(
    tmp_path: Path, fields: dict[str, Any], status: int, stream: bool
) -> None:
    """A cycle would keep a request with all its frames until the next full collection."""
    body = {"model": BASE, "prompt": "Once", "max_tokens": 3, "stream": stream} | fields
    with api(tmp_path) as made:
        async with made.client() as client:
            await client.post("/v1/completions", json=body)
            with left_for_the_collector() as found:
                for _ in range(3):
                    answer = await client.post("/v1/completions", json=body)
                    assert answer.status_code == status
                del answer
                await asyncio.sleep(0)
    assert [type(one) for one in found if isinstance(one, Request | Exception)] == []


async def test_an_answer_that_breaks_leaves_no_cycle(tmp_path: Path) -> None:
    body = {"model": BASE, "prompt": "Once", "stream": True}
    with api(tmp_path) as made:
        made.engine.break_after = 2
        async with made.client() as client:
            await client.post("/v1/completions", json=body)
            with left_for_the_collector() as found:
                answer = await client.post("/v1/completions", json=body)
                assert b"engine_unavailable" in answer.content
                del answer
                await asyncio.sleep(0)
    assert [type(one) for one in found if isinstance(one, Request | Exception)] == []

"""Usage as it is kept: after kill -9, on a disk that fails, by hour and by day, for a time."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from weft.adapters.tenancy import TenantContext
from weft.server.usage.book import Query
from weft.server.usage.counts import Used
from weft.server.usage.meter import HOUR, Meter
from weft.server.usage.usage import Usage

TENANT = TenantContext("acme")
ALL = Query(start=0, end=1 << 32, width=HOUR)
KILLED = """
import asyncio, sys
from pathlib import Path
from weft.adapters.tenancy import TenantContext
from weft.server.usage.counts import Used
from weft.server.usage.usage import Usage

async def main():
    usage = Usage(Path(sys.argv[1]), None)
    while True:
        usage.meter.tab(TenantContext("acme"), Used("bot", "d")).charge(prompt=3, completion=1)
        await usage.write()
        print("written", flush=True)

asyncio.run(main())
"""


async def requests(usage: Usage, query: Query = ALL) -> list[tuple[int, int, int]]:
    return [(p.bucket, c.requests, c.prompt_tokens) for p, c in await usage.read(query)]


def test_what_was_written_survives_kill_9(tmp_path: Path) -> None:
    path, told = tmp_path / "usage.sqlite", 0
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            told += sum(process.stdout.readline() == b"written\n" for _ in range(5))
            process.kill()
            told += len(process.stdout.read().splitlines())
    usage = Usage(path, None)
    found = sum(count for _, count, _ in asyncio.run(requests(usage)))
    usage.close()
    assert told <= found <= told + 3  # one more was written, and not told, before each kill
    assert told >= 15


async def test_what_the_disk_did_not_take_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(tmp_path / "db", None)
    add = usage._book.add
    monkeypatch.setattr(usage._book, "add", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    tab = usage.meter.tab(TENANT, Used("bot", "d"))
    tab.charge(prompt=3)
    await usage.write()
    tab.charge(completion=2)
    monkeypatch.setattr(usage._book, "add", add)
    ((_, counts),) = await usage.read(ALL)
    assert (counts.requests, counts.prompt_tokens, counts.completion_tokens) == (1, 3, 2)
    usage.close()


async def test_hours_make_days_and_old_ones_go(tmp_path: Path) -> None:
    now = 400_000 * HOUR + 5.0
    clock = [now]
    usage = Usage(tmp_path / "db", None, Meter(lambda: clock[0]))
    tab = usage.meter.tab(TENANT, Used("bot", "d"))
    begin = 400_000 * HOUR
    for hours in range(30):
        clock[0] = now + hours * HOUR
        tab.charge(prompt=1)
    hourly = await requests(usage)
    assert [bucket for bucket, *_ in hourly] == [begin + i * HOUR for i in range(30)]
    assert [count for _, count, _ in hourly] == [1] + [0] * 29
    daily = await requests(usage, Query(start=0, end=1 << 32, width=24 * HOUR))
    assert sum(prompt for *_, prompt in daily) == 30
    assert all(bucket % (24 * HOUR) == 0 for bucket, *_ in daily)
    part = Query(start=begin + 2 * HOUR, end=begin + 5 * HOUR, width=HOUR, of=TENANT)
    assert len(await requests(usage, part)) == 3
    assert (
        await requests(usage, Query(start=0, end=1 << 32, width=HOUR, of=TenantContext("x"))) == []
    )
    usage.close()
    usage = Usage(tmp_path / "db", 3600.0)
    usage.meter.tab(TENANT, Used("bot", "d")).charge(prompt=1)
    assert len(await requests(usage)) == 1
    usage.close()

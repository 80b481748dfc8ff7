"""Usage as the server keeps it: counted in memory, written every few seconds. Knows no HTTP."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from weft.server.engine.messages import Stats
from weft.server.usage.book import Place, Query, UsageBook
from weft.server.usage.counts import Counts
from weft.server.usage.meter import Meter

log = logging.getLogger("weft.usage")
WRITE_SECONDS = 5.0
"""With a sample's time, what a kill may lose; running requests count as they go."""
SAMPLE_SECONDS = 1.0


class Usage:
    """The meter, and the book that it is written to in a thread of its own.

    keep: seconds that an hour is kept; None is for ever
    """

    def __init__(self, path: Path, keep: float | None, meter: Meter | None = None) -> None:
        """Opens the book; raises StateInUse, OSError."""
        self.meter = meter or Meter()
        self._book = UsageBook(path)
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "usage")

    async def follow(
        self,
        stats: Callable[[], Stats | None],
        names: Callable[[str], Iterable[tuple[str, str]]],
    ) -> None:
        """Samples the device and writes, for ever. stats, names: as they are now"""
        written = time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.sample(stats(), names)
            if time.monotonic() - written >= WRITE_SECONDS:
                written = time.monotonic()
                await self.write()

    def sample(
        self, stats: Stats | None, names: Callable[[str], Iterable[tuple[str, str]]]
    ) -> None:
        """Charges what is on the device; nothing while the engine is away."""
        if stats is None:
            self.meter.skip()
        else:
            self.meter.sample(stats.adapters, names)

    async def write(self) -> None:
        """Makes what was counted so far durable; where the disk fails it is tried again later."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write)

    async def read(self, query: Query) -> list[tuple[Place, Counts]]:
        """Rows in the order of their places, with all that was counted so far; raises OSError."""
        await self.write()
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._book.read, query
        )

    def close(self) -> None:
        """Writes what is left, and closes the book."""
        self._thread.submit(self._write).result()
        self._thread.shutdown()
        self._book.close()

    def _write(self) -> None:
        rows = self.meter.take()
        if not rows:
            return
        oldest = 0 if self._keep is None else int(time.time() - self._keep)
        try:
            self._book.add(rows, oldest)
        except OSError as error:
            self.meter.put_back(rows)
            log.warning("usage could not be written, which is tried again: %s", error)

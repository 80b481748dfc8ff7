"""Long texts of one tenant, beside the short ones of others."""

import asyncio
import threading
from contextlib import AsyncExitStack

from weft.adapters.tenancy import TenantContext
from weft.server.reading import LONG, Reading

ONE, OTHER = TenantContext("one"), TenantContext("other")
MANY = 100
WAIT = 30


class Gate:
    """Work that ends when it is told to, and how much of it has begun."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.most = self._now = 0
        self._lock = threading.Lock()

    def __call__(self, answer: int) -> int:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.begun.release()
        assert self.open.wait(WAIT)
        with self._lock:
            self._now -= 1
        return answer


async def test_long_texts_of_one_tenant_leave_threads_for_others() -> None:
    reading, gate = Reading(), Gate()
    long = [asyncio.create_task(reading(ONE, LONG, gate, number)) for number in range(MANY)]
    assert await asyncio.to_thread(gate.begun.acquire, timeout=WAIT)
    assert await reading(ONE, LONG - 1, int) == 0
    assert await reading(OTHER, LONG, int) == 0
    gate.open.set()
    assert await asyncio.gather(*long) == list(range(MANY))
    assert gate.most == 1


async def test_who_leaves_the_line_keeps_nobody_waiting() -> None:
    reading, gate = Reading(), Gate()
    async with AsyncExitStack():
        first = asyncio.create_task(reading(ONE, LONG, gate, 1))
        second, third = (asyncio.create_task(reading(ONE, LONG, gate, n)) for n in (2, 3))
        assert await asyncio.to_thread(gate.begun.acquire, timeout=WAIT)
        second.cancel()
        gate.open.set()
        assert await asyncio.gather(first, third) == [1, 3]
        assert second.cancelled()
    assert await reading(ONE, LONG, int) == 0

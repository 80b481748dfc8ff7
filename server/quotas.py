"""What a tenant uses of its quotas: rates, and turns to be computed. Knows no routes."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from weft.server.errors import ApiError, ErrorCode, invalid
from weft.server.policy import Quotas

MINUTE = 60.0


class Rate:
    """So many units a minute, a minute's worth at once. None is without a limit."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limit: int | None = None
        self._level = 0.0
        self._seen = clock()

    def take(self, amount: int, limit: int | None) -> float:
        """Takes it and returns 0; or takes nothing, and returns the seconds until there is enough.

        limit: that holds now   amount: at most `limit`
        """
        if limit is None:
            self._limit = None
            return 0.0
        self._refill(limit)
        missing = amount - self._level
        if missing > 0:
            return missing * MINUTE / limit
        self._level -= amount
        return 0.0

    def give_back(self, amount: int) -> None:
        """Returns what was taken and not used."""
        if self._limit is not None:
            self._level = min(self._level + amount, self._limit)

    def _refill(self, limit: int) -> None:
        now = self._clock()
        if self._limit is None:
            self._level = limit
        else:
            self._level = min(self._level + (now - self._seen) * limit / MINUTE, limit)
        self._limit, self._seen = limit, now


class Turns:
    """Who may be computed now and who waits, first come, first served."""

    def __init__(self, limit: Callable[[], int | None]) -> None:
        """limit: that holds now"""
        self.taken = 0
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self, count: int) -> AsyncIterator[None]:
        """Waits until `count` more fit within the limit."""
        place = count, asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._call()
        try:
            await place[1]
            yield
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
            else:
                self.taken -= count
            self._call()

    def _call(self) -> None:
        """Lets in the first of those that wait, as many as fit; one that never fits goes alone."""
        while self._waiting:
            count, future = self._waiting[0]
            limit = self._limit()
            if self.taken and limit is not None and self.taken + count > limit:
                return
            self._waiting.popleft()
            self.taken += count
            if not future.done():
                future.set_result(None)


class Account:
    """One tenant's use: its rates, its turns, and `inside`, the choices admitted and not ended."""

    def __init__(
        self, quotas: Callable[[], Quotas], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """quotas: that hold now   clock: seconds, monotonic"""
        self.inside = 0
        self._quotas = quotas
        self._requests = Rate(clock)
        self._tokens = Rate(clock)
        self._turns = Turns(lambda: quotas().concurrent_requests)

    def count_request(self) -> None:
        """Counts one request; raises ApiError where there were too many in the last minute."""
        limit = self._quotas().requests_per_minute
        _refuse(self._requests.take(1, limit), f"{limit} requests")

    def charge(self, tokens: int) -> None:
        """Counts tokens ahead of their use; raises ApiError where there were too many."""
        limit = self._quotas().tokens_per_minute
        if limit is not None and tokens > limit:
            reason = f"comes to {tokens} tokens with the prompt; the quota is {limit} a minute"
            raise invalid("max_tokens", reason)
        _refuse(self._tokens.take(tokens, limit), f"{limit} tokens")

    async def pay(self, tokens: int) -> None:
        """Counts tokens once there are as many left, for work that can wait."""
        while True:
            limit = self._quotas().tokens_per_minute
            seconds = self._tokens.take(tokens if limit is None else min(tokens, limit), limit)
            if not seconds:
                return
            await asyncio.sleep(seconds)

    def give_back(self, tokens: int) -> None:
        """Returns what was charged and not used."""
        self._tokens.give_back(tokens)

    def turn(self, sequences: int) -> AbstractAsyncContextManager[None]:
        """Waits until so many more may be computed."""
        return self._turns.turn(sequences)


def _refuse(seconds: float, limit: str) -> None:
    if seconds:
        raise ApiError(
            ErrorCode.RATE_LIMIT_EXCEEDED,
            values={"limit": limit},
            retry_after=max(1, math.ceil(seconds)),
        )

"""Adapters on their way: what comes at the same time counts together. Knows no routes and no disk.

What is under way has been counted before it is written, and is until it is stored or given up.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weft.server.errors import ApiError, ErrorCode
from weft.server.holdings import exceeded


class Arrivals:
    """All that one tenant has on its way. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.bytes = 0
        self.ended = 0
        """How many have ended: what is stored may be more since."""


class Allowance:
    """How many bytes an adapter's weights may have, and the answer to more.

    largest: bytes that anybody may send   limit: the tenant's quota; None: it has none
    room: bytes that the tenant may have on their way, by what is stored now
    """

    def __init__(
        self,
        largest: int,
        limit: int | None = None,
        room: Callable[[], int] = lambda: 0,
        arrivals: Arrivals | None = None,
    ) -> None:
        self._largest = largest
        self._limit = limit
        self._room = room
        self._arrivals = arrivals or Arrivals()
        self._known_room, self._known_at = 0, -1
        self._claimed = 0

    @property
    def bytes(self) -> int:
        """The most that may come as things are now."""
        return self._largest if self._limit is None else min(self._largest, self._left())

    def claim(self, nbytes: int) -> None:
        """Takes room for so many bytes in all; raises ApiError where they are too many."""
        with self._arrivals.lock:
            if nbytes > self.bytes:
                raise self._refusal()
            self._arrivals.bytes += max(nbytes - self._claimed, 0)
            self._claimed = max(nbytes, self._claimed)

    def release(self) -> None:
        """Gives the room back: what came is stored, or is not there."""
        with self._arrivals.lock:
            self._arrivals.bytes -= self._claimed
            self._arrivals.ended += 1
            self._claimed = 0

    def _left(self) -> int:
        arrivals = self._arrivals
        with arrivals.lock:
            if self._known_at != arrivals.ended:
                self._known_room, self._known_at = self._room(), arrivals.ended
            return max(self._known_room - (arrivals.bytes - self._claimed), 0)

    def _refusal(self) -> ApiError:
        if self._limit is not None and self._left() < self._largest:
            return exceeded(self._limit, "bytes of adapters")
        values = {"what": "adapter", "limit": self._largest}
        return ApiError(ErrorCode.REQUEST_TOO_LARGE, values=values)


@contextmanager
def arriving(allowance: Allowance) -> Iterator[Allowance]:
    """The allowance, given back at the end."""
    try:
        yield allowance
    finally:
        allowance.release()

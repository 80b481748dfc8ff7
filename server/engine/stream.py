"""One request's events on their way to its reader, and whether the engine should wait for it."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from weft.server.engine.messages import Tokens

MANY_UNREAD, FEW_UNREAD = 256, 64
"""Events of a request at which the engine is told to wait with it, and to go on."""
MANY_BYTES, FEW_BYTES = 256 << 10, 64 << 10
"""The same in bytes: events with many log-probabilities are large."""
_EVENT_BYTES, _CHOICE_BYTES = 512, 128
"""About what an event takes here, and each token in it whose log-probability it tells."""


@dataclass
class Stream:
    """Events in order, then None where the engine is gone.

    open_children: those whose last event was not read   late: called with what comes after that
    paused: the engine was told to wait until some were read
    """

    open_children: set[int]
    late: Callable[[Tokens], None] = lambda _: None
    paused: bool = False
    unread_bytes: int = 0
    _unread: deque[Tokens | None] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: Tokens | None) -> None:
        """Adds the next event."""
        self._unread.append(event)
        self.unread_bytes += size_of(event)
        self._arrived.set()

    async def get(self) -> Tokens | None:
        """The next event, once there is one."""
        while not self._unread:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._unread.popleft()
        self.unread_bytes -= size_of(event)
        return event

    def take_unread(self) -> list[Tokens]:
        """All that was not read."""
        unread = [event for event in self._unread if event is not None]
        self._unread.clear()
        self.unread_bytes = 0
        return unread

    @property
    def is_behind(self) -> bool:
        """Whether so much is unread that the engine should wait."""
        return len(self._unread) >= MANY_UNREAD or self.unread_bytes >= MANY_BYTES

    @property
    def has_caught_up(self) -> bool:
        """Whether so little is unread that it should go on."""
        return len(self._unread) <= FEW_UNREAD and self.unread_bytes <= FEW_BYTES


def size_of(event: Tokens | None) -> int:
    """About how many bytes of memory an event takes."""
    if event is None:
        return 0
    told = (*event.logprobs, *(event.prompt_logprobs or ()))
    return _EVENT_BYTES + _CHOICE_BYTES * sum(1 + len(each.top) for each in told if each)

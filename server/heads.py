"""How long, and how large, the head of a request may be before anything else looks at it.

uvicorn waits for ever for a connection's first request, and holds as much of a head as comes.
"""

from asyncio import Transport, get_running_loop
from asyncio.events import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 30.0
MAX_HEAD_BYTES = 64 * 1024
"""Twice what a request may have in headers: those are refused in the API's words."""


class LimitedHeads(HttpToolsProtocol):
    """A connection that is closed when a head does not come, comes slowly or never ends."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._in_head = False
        self._bytes = 0
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Waits for the first head."""
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing more."""
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what has come of a head that is not complete."""
        super().data_received(data)
        if self._in_head:
            self._bytes += len(data)
            if self._bytes > MAX_HEAD_BYTES:
                self._give_up()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._end()
        self._begin()

    def on_headers_complete(self) -> None:
        """A head is complete; the body has limits of its own."""
        self._end()
        super().on_headers_complete()

    def _begin(self) -> None:
        self._in_head, self._bytes = True, 0
        self._wait()

    def _wait(self) -> None:
        self._timer = get_running_loop().call_later(HEAD_SECONDS, self._is_late)

    def _is_late(self) -> None:
        """What was asked before on this connection is answered first."""
        answered = getattr(self.cycle, "response_complete", True)  # there is no cycle at first
        if not answered:
            self._wait()
        else:
            self._give_up()

    def _end(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self) -> None:
        self._end()
        self.transport.close()

"""How many sequences may be in the server at a time. Knows no tokens and no tenants."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from weft.server.errors import ApiError, ErrorCode, invalid


class Admission:
    """Counts sequences from admission to their end; refuses what would exceed `places`.

    starting: adapters that are to be there from the beginning are still loading
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.inside = 0
        self.starting = False
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self, sequences: int) -> Iterator[None]:
        """Holds places for `sequences`; raises ApiError where it cannot now."""
        if self.draining:
            raise ApiError(ErrorCode.DRAINING)
        if sequences > self.places:
            raise invalid("n", f"asks for {sequences} choices, the server has {self.places} places")
        if self.inside + sequences > self.places:
            raise ApiError(ErrorCode.QUEUE_FULL)
        self.inside += sequences
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= sequences
            if not self.inside:
                self._empty.set()

    def drain(self) -> None:
        """Admits nothing more; what is inside goes on."""
        self.draining = True

    async def empty(self) -> None:
        """Waits until nothing is inside."""
        await self._empty.wait()

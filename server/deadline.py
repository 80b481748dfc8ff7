"""How long a request may take: what the server allows, or less where the client asks for less."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers

from weft.server.errors import ApiError, ErrorCode, invalid

HEADER = "X-Request-Timeout"
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


def seconds_allowed(headers: Headers, longest: float | None) -> float | None:
    """By the client's header and the server's limit; None where neither is given.

    Raises ApiError for a header that is no positive number of seconds.
    """
    given = headers.getlist(HEADER)
    if not given:
        return longest
    if len(given) > 1 or not _NUMBER.fullmatch(given[0]) or not float(given[0]):
        raise invalid(HEADER, "is one positive number of seconds, such as 30 or 2.5")
    return min(float(given[0]), longest or float("inf"))


@asynccontextmanager
async def within(seconds: float | None) -> AsyncIterator[None]:
    """Cancels what it encloses after so many seconds, and then raises the ApiError for it."""
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise ApiError(ErrorCode.DEADLINE_EXCEEDED) from None
        raise

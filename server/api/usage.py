"""GET /v1/usage: what was used of which adapters, by day or hour."""

import base64
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from weft.adapters.tenancy import TenantContext
from weft.server.api.json_response import json_response
from weft.server.errors import ApiError, ErrorCode, invalid
from weft.server.policy import Role
from weft.server.services import Services, services_of
from weft.server.usage import book
from weft.server.usage.book import FIRST, Place
from weft.server.usage.counts import BASE, SEVERAL, Counts

router = APIRouter()
_WIDTHS = {"1h": 3600, "1d": 86400}
_DAYS = 7
_LATEST = 4_102_444_800  # the year 2100
_MOST = 10_000
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """Whose usage a call asks for, by the tenant's name."""

    tenant: Annotated[str | None, Query(max_length=64)] = None


@router.get("/v1/usage")
async def show_usage(
    request: Request,
    named: Annotated[Named, Depends()],
    start: Annotated[str | None, Query(max_length=40)] = None,
    end: Annotated[str | None, Query(max_length=40)] = None,
    bucket_width: Literal["1h", "1d"] = "1d",
    adapter: Annotated[str | None, Query(max_length=160)] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 1000,
    page: Annotated[str | None, Query(max_length=600)] = None,
) -> Response:
    """Usage by bucket, tenant, adapter and version: the tenant's own; an admin's are all, or one's.

    start, end: seconds since 1970 or ISO 8601; whole buckets from the one that `start` falls in to
    the last one that begins before `end`; by default the last seven days   tenant: for admins
    page: `next_page` of the answer before
    """
    services, width = services_of(request), _WIDTHS[bucket_width]
    now = int(time.time())
    until = now + 1 if end is None else _seconds("end", end)
    since = until - _DAYS * 86400 if start is None else _seconds("start", start)
    if since >= until:
        raise invalid("start", "is not before end")
    rows = await services.usage.read(
        book.Query(
            start=since - since % width,
            end=until + -until % width,
            width=width,
            of=_whose(services, request, named),
            adapter=BASE if adapter in services.router.base_names else adapter,
            after=_place(page),
            limit=limit + 1,
        )
    )
    shown = rows[:limit]
    more = len(rows) > limit
    return json_response(
        {
            "object": "page",
            "data": [_row(place, counts, width) for place, counts in shown],
            "has_more": more,
            "next_page": _token(shown[-1][0]) if more else None,
        }
    )


def _whose(services: Services, request: Request, named: Named) -> TenantContext | None:
    """Whose usage the caller may see and asks for; None for everybody's. Raises ApiError."""
    caller = request.state.caller
    if caller.role < Role.ADMIN:
        mine: TenantContext = caller.tenant
        if named.tenant not in (None, mine.id):
            raise ApiError(ErrorCode.FORBIDDEN, values={"reason": "the key is not an admin's"})
        return mine
    if named.tenant is None:
        return None
    found = services.tenants.policy.called(named.tenant)
    if found is None:
        raise invalid("tenant", "cannot be a tenant's name")
    return found


def _seconds(param: str, text: str) -> int:
    """A time as seconds since 1970, UTC where it says nothing else; raises ApiError."""
    try:
        if text.isascii() and text.isdigit():
            found = int(text)
        else:
            read = datetime.fromisoformat(text)
            found = int((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        found = -1
    if not 0 <= found <= _LATEST:
        raise invalid(param, "should be seconds since 1970, or a time like 2026-01-31T00:00:00Z")
    return found


def _row(place: Place, counts: Counts, width: int) -> Json:
    return {
        "object": "usage",
        "start": place.bucket,
        "end": place.bucket + width,
        "tenant": place.tenant,
        "adapter": None if place.adapter == BASE else place.adapter,
        "digest": None if place.adapter == SEVERAL else place.digest,
        "requests": counts.requests,
        "prompt_tokens": counts.prompt_tokens,
        "cached_tokens": counts.cached_tokens,
        "completion_tokens": counts.completion_tokens,
        "adapter_byte_seconds": round(counts.byte_seconds),
    }


def _token(place: Place) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _place(token: str | None) -> Place:
    """What `_token` wrote; raises ApiError for anything else."""
    if token is None:
        return FIRST
    try:
        bucket, *words = json.loads(base64.urlsafe_b64decode(token))
        if type(bucket) is not int or not 0 <= bucket <= _LATEST or len(words) != 3:
            raise ValueError
        if not all(isinstance(word, str) and word.isprintable() for word in words):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise invalid("page", "is not what an answer gave as next_page") from None
    return Place(bucket, *words)

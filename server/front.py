"""What every request meets first: its id, its framing, its key; and last: failures become answers.

A pure ASGI middleware.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.server.access import Route, refusal, route_of
from weft.server.audit.audit import ACTIONS, OK, Audit, Entry
from weft.server.errors import ApiError, ErrorCode, invalid, translate
from weft.server.metrics import Metrics
from weft.server.router import ADAPTER_HEADERS
from weft.server.tenants import Tenants

log = logging.getLogger("weft.api")
MAX_HEADER_BYTES = 32 * 1024
_ONCE = ("Host", "Authorization", "Content-Length", "Content-Type", "Transfer-Encoding", "If-Match")


class Front:
    """Gives each request an id and a tenant, or answers it itself."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        tenants: Tenants,
        metrics: Metrics,
        audit: Audit,
        proxy_header: str | None,
    ) -> None:
        """proxy_header: in which a trusted proxy, and nobody else, names the tenant"""
        self._app = app
        self._proxy_header = proxy_header
        self._tenants = tenants
        self._metrics = metrics
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None
        result = OK
        route = route_of(scope["method"], scope["path"])

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await self._record(scope, result)
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            self._check(scope, route)
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("request %s: the client went away", request_id)
            await self._record(scope, "client_gone")
        except Exception as error:
            failure = translate(error)
            if status is not None:
                log.exception("request %s: failed while it was answered", request_id)
                raise
            result = failure.error.code
            await answer_error(failure, request_id, send_with_id)
            del failure  # whose traceback holds this frame
        finally:
            self._metrics.answered(*_labels(route), status or 499)

    def _check(self, scope: Scope, route: Route | None) -> None:
        proxy = self._proxy_header
        check_framing(scope["headers"], once=(proxy,) if proxy else ())
        if route is not None and route.open:
            return
        headers = Headers(scope=scope)
        caller = self._tenants.authenticate(headers.get("authorization"))
        if proxy and (named := headers.get(proxy)) is not None:
            caller = self._tenants.narrow(caller, named)
        if route is None:
            raise refusal(scope["method"], scope["path"])
        scope["state"].update(caller=caller, tenant=caller.tenant)
        action = ACTIONS.get((route.method, route.template))
        if action is not None:
            name = route.pattern.match(scope["path"])
            facts = name.groupdict() if name else {}
            scope["state"]["entry"] = Entry(action, caller, scope["state"]["request_id"], facts)
        route.check(caller)

    async def _record(self, scope: Scope, result: str) -> None:
        """Writes a change, before it is answered, to the audit log; others are not written."""
        entry = scope["state"].pop("entry", None)
        if entry is not None:
            await self._audit.record(entry, result)


def check_framing(headers: Sequence[tuple[bytes, bytes]], once: Sequence[str] = ()) -> None:
    """Refuses what two readers could understand in two ways; raises ApiError.

    headers: as ASGI has them, names in lower case   once: more that may not be repeated
    """
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        values = {"limit": MAX_HEADER_BYTES}
        raise ApiError(ErrorCode.REQUEST_HEADER_FIELDS_TOO_LARGE, values=values)
    counts = Counter(name.decode("latin-1") for name, _ in headers)
    if counts["content-length"] and counts["transfer-encoding"]:
        raise invalid("Transfer-Encoding", "comes together with Content-Length")
    for name in (*_ONCE, *once):
        if counts[name.lower()] > 1:
            raise invalid(name, "is given more than once")
    if sum(counts[name.lower()] for name in ADAPTER_HEADERS) > 1:
        raise invalid(ADAPTER_HEADERS[0], "is given more than once")


async def answer_error(error: ApiError, request_id: str, send: Send) -> None:
    """Sends an answer of the catalogue."""
    body = error.body_bytes(request_id)
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **error.headers,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _labels(route: Route | None) -> tuple[str, str]:
    """What metrics call a request: never by words of the client."""
    return (route.template, route.method) if route else ("unmatched", "other")

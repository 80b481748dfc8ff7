"""Who may call which route. What is not listed here cannot be called at all."""

from dataclasses import dataclass, field
from re import Pattern

from starlette.routing import compile_path

from weft.server.errors import ApiError, ErrorCode
from weft.server.policy import Caller, Role

# These say nothing of any tenant, and whoever checks that the server lives has no key.
_OPEN = ("GET /", "GET /examples", "GET /health", "GET /ready")
_USE = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /tokenize",
    "POST /detokenize",
    "GET /v1/models",
    "GET /v1/models/{model:path}",
    "GET /v1/adapters",
    "GET /v1/adapters/{name}",
    "GET /v1/adapters/{owner}/{name}",
    "POST /v1/adapters/{name}/prefetch",
    "GET /v1/aliases",
    "GET /v1/aliases/{name}",
    "POST /v1/evaluations",
    "GET /v1/evaluations",
    "GET /v1/evaluations/{identity}",
    "DELETE /v1/evaluations/{identity}",
    "GET /v1/usage",
    "GET /version",
    "GET /openapi.json",
)
_MANAGE = (
    "PUT /v1/adapters/{name}",
    "DELETE /v1/adapters/{name}",
    "POST /v1/adapters/{name}/rollback",
    "POST /v1/adapters/{name}/pin",
    "POST /v1/adapters/{name}/unpin",
    "PUT /v1/aliases/{name}",
    "DELETE /v1/aliases/{name}",
    "POST /v1/aliases/{name}/promote",
    "POST /v1/aliases/{name}/rollback",
    "POST /v1/load_lora_adapter",
    "POST /v1/unload_lora_adapter",
)
_ADMIN = ("GET /metrics",)


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one route. role: that a caller needs; None is for everybody, key or not"""

    method: str
    template: str
    role: Role | None
    pattern: Pattern[str] = field(compare=False)

    @property
    def open(self) -> bool:
        """Whether it needs no key."""
        return self.role is None

    def check(self, caller: Caller) -> None:
        """Raises ApiError where the caller's key is not for this."""
        if self.role is not None and caller.role < self.role:
            reason = f"the key's role is {caller.role.name.lower()}, not {self.role.name.lower()}"
            raise ApiError(ErrorCode.FORBIDDEN, values={"reason": reason})


def _route(words: str, role: Role | None) -> Route:
    method, template = words.split()
    return Route(method, template, role, compile_path(template)[0])


ROUTES = tuple(
    _route(words, role)
    for role, listed in (
        (None, _OPEN),
        (Role.USE, _USE),
        (Role.MANAGE, _MANAGE),
        (Role.ADMIN, _ADMIN),
    )
    for words in listed
)


def route_of(method: str, path: str) -> Route | None:
    """The listed route that a request means; None where there is none."""
    return next((r for r in ROUTES if r.method == method and r.pattern.match(path)), None)


def refusal(method: str, path: str) -> ApiError:
    """What a request for no listed route is answered."""
    if any(route.pattern.match(path) for route in ROUTES):
        return ApiError(ErrorCode.METHOD_NOT_ALLOWED, values={"method": method[:16]})
    return ApiError(ErrorCode.NOT_FOUND, values={"method": method[:16], "path": path[:128]})

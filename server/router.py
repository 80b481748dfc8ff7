"""Which adapter version answers a request, and the lease that holds it. Knows no request bodies."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson
from starlette.datastructures import Headers

from weft.adapters.errors import UnknownAdapter
from weft.adapters.registry import NAME, Registry
from weft.adapters.tenancy import TenantContext
from weft.server.errors import ApiError, ErrorCode
from weft.server.metrics import AdapterLabel, Metrics

ADAPTER_HEADERS = ("X-Adapter-ID", "X-Amzn-SageMaker-Adapter-Identifier")
_ID = re.compile(rf"({NAME.pattern})(?:@([1-9][0-9]{{0,8}}))?")
_SHORT = 10


@dataclass(frozen=True)
class Target:
    """What computes an answer.

    model: as the body's `model` names it   id: the base's name, or name@version
    adapter: the version's digest, None for the base   label: for series about the adapter
    virtual_tokens: positions of the context that the adapter takes before the prompt
    """

    model: str
    id: str
    base_digest: str
    adapter: str | None = None
    label: AdapterLabel | None = None
    virtual_tokens: int = 0

    @property
    def headers(self) -> tuple[tuple[bytes, str], ...]:
        """The answer's headers that say what computed it."""
        digest = self.adapter or self.base_digest
        return (b"x-adapter-id", self.id), (b"x-adapter-digest", digest)

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with whatever changes the answers."""
        digests = (self.base_digest, self.adapter)
        return "_".join(["fp", *(digest[:_SHORT] for digest in digests if digest)])


class Router:
    """Finds the version that a request means.

    base_names: names of the base, the first one being its id in the API
    base_digest: asked for with each request, since it is known only once the engine has started
    """

    def __init__(
        self,
        base_names: tuple[str, ...],
        base_digest: Callable[[], str],
        registry: Registry,
        metrics: Metrics,
    ) -> None:
        self.base_names = base_names
        self._base_digest = base_digest
        self._registry = registry
        self._metrics = metrics

    @contextmanager
    def target(
        self, tenant: TenantContext, headers: Headers, model: str | None
    ) -> Iterator[Target]:
        """Holds what a request's headers and `model` name; without either, the base.

        Raises ApiError for a conflict, and for what this tenant does not have. A version whose
        files turn out to be damaged meanwhile is withdrawn.
        """
        name = self.choose(headers, model)
        if name is None:
            yield Target(self.base_names[0], self.base_names[0], self._base_digest())
            return
        match = _ID.fullmatch(name)
        unknown = ApiError(ErrorCode.MODEL_NOT_FOUND, param="model", values={"model": name[:128]})
        if match is None:
            raise unknown
        try:
            lease = self._registry.lease(tenant, match[1], int(match[2]) if match[2] else None)
        except UnknownAdapter:
            raise unknown from None
        with lease:
            label = AdapterLabel(tenant.id, lease.name)
            self._metrics.seen(label, lease.digest)
            try:
                yield Target(
                    name,
                    lease.id,
                    self._base_digest(),
                    lease.digest,
                    label,
                    orjson.loads(lease.report).get("virtual_tokens", 0),
                )
            except ApiError as error:
                if error.error is ErrorCode.ADAPTER_CORRUPT:
                    self._registry.withdraw(lease, "its stored files are damaged")
                raise

    def choose(self, headers: Headers, model: str | None) -> str | None:
        """The adapter that a request asks for, by the words it used; None for the base."""
        asked = next((headers[name] for name in ADAPTER_HEADERS if name in headers), None)
        if asked is not None and model not in (None, asked, *self.base_names):
            raise ApiError(ErrorCode.ADAPTER_CONFLICT, param="model")
        name = model if asked is None else asked
        return None if name is None or name in self.base_names else name

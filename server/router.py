"""Which versions answer a request, and the leases that hold them. Knows no request bodies."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import orjson
from starlette.datastructures import Headers

from weft.adapters.blend import BASE, Blend, Part, digest_of
from weft.adapters.errors import UnknownAdapter
from weft.adapters.holds import Lease
from weft.adapters.registry import DAMAGED, Registry
from weft.adapters.tenancy import TenantContext
from weft.server.adapter_series import AdapterLabel
from weft.server.errors import ApiError, ErrorCode
from weft.server.metrics import Metrics
from weft.server.selection import Member, Selected, check, parse
from weft.server.tenants import Tenants
from weft.server.usage.counts import BASE as BASE_USED
from weft.server.usage.counts import SEVERAL, Used

ADAPTER_HEADERS = ("X-Adapter-ID", "X-Amzn-SageMaker-Adapter-Identifier")
DEFAULT = "default"
_SHORT = 10


@dataclass(frozen=True)
class Target:
    """What computes an answer.

    model: as the body's `model` names it   id: the base's name, or name@version, with several or a
        weight name@version:weight of each
    blend: the versions; empty for the base   versions: their digests by who has series about them
    virtual_tokens: positions of the context that an adapter takes before the prompt
    created: of the newest version, seconds since 1970
    """

    model: str
    id: str
    base_digest: str
    blend: Blend = BASE
    versions: Mapping[AdapterLabel, str] = field(default_factory=dict)
    virtual_tokens: int = 0
    created: float = 0.0

    @property
    def digest(self) -> str:
        """SHA-256 of what computes the answer; see `weft.adapters.blend.digest_of`."""
        return digest_of(self.blend) if self.blend else self.base_digest

    @property
    def headers(self) -> tuple[tuple[bytes, str], ...]:
        """The answer's headers that say what computed it."""
        return (b"x-adapter-id", self.id), (b"x-adapter-digest", self.digest)

    def used_by(self, tenant: TenantContext) -> Used:
        """What the usage of a tenant's request is booked on."""
        if not self.blend:
            return Used(BASE_USED, self.base_digest)
        if len(self.blend) > 1:
            return Used(SEVERAL, "")
        ((label, digest),) = self.versions.items()
        own = label.tenant == tenant.account
        return Used(label.adapter if own else f"{label.tenant}/{label.adapter}", digest)

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with whatever changes the answers."""
        digests = dict.fromkeys((self.base_digest, self.digest))
        return "_".join(["fp", *(digest[:_SHORT] for digest in digests)])


class Router:
    """Finds the versions that a request means.

    base_names: names of the base, the first one being its id in the API
    base_digest, adapter_bytes: of the engine, asked for with each request, since they are known
        only once it has started
    """

    def __init__(
        self,
        base_names: tuple[str, ...],
        base_digest: Callable[[], str],
        adapter_bytes: Callable[[], int],
        registry: Registry,
        metrics: Metrics,
        tenants: Tenants,
    ) -> None:
        self.base_names = base_names
        self._base_digest = base_digest
        self._adapter_bytes = adapter_bytes
        self._registry = registry
        self._metrics = metrics
        self._tenants = tenants

    @contextmanager
    def target(
        self, tenant: TenantContext, headers: Headers, model: str | None, choice: str
    ) -> Iterator[Target]:
        """Holds what a request's headers and `model` name; without either, the base.

        choice: what decides which way an alias leads that splits, the same way each time
        Raises ApiError for a conflict, and for what this tenant does not have. A version whose
        files turn out to be damaged meanwhile is withdrawn.
        """
        name = self.choose(tenant, headers, model)
        if name is None:
            yield Target(self.base_names[0], self.base_names[0], self._base_digest())
            return
        selected = parse(name)
        policy = self._tenants.policy
        if selected is None:
            raise _unknown(name)
        with ExitStack() as held:
            try:
                leases = [
                    held.enter_context(
                        self._registry.lease(
                            policy.owner(tenant, s.adapter), s.adapter.name, s.version, choice
                        )
                    )
                    for s in selected
                ]
            except UnknownAdapter:
                raise _unknown(name) from None
            try:
                yield self._target(name, selected, leases)
            except ApiError as error:
                if error.error is ErrorCode.ADAPTER_CORRUPT:
                    self._withdraw(leases)
                raise

    def _withdraw(self, leases: list[Lease]) -> None:
        """The engine found one of these damaged; of several, it does not say which."""
        if len(leases) == 1:
            self._registry.withdraw(leases[0], DAMAGED)
        else:
            for lease in leases:
                self._registry.examine(lease)

    def _target(self, name: str, selected: list[Selected], leases: list[Lease]) -> Target:
        weights = [s.weight for s in selected]
        pairs = list(zip(leases, weights, strict=True))
        members = [_member(s, lease) for s, lease in zip(selected, leases, strict=True)]
        check(members, self._adapter_bytes())
        versions = {AdapterLabel(lease.ctx.id, lease.name): lease.digest for lease in leases}
        for label, digest in versions.items():
            self._metrics.seen(label, digest)
        plain = weights == [1.0]
        return Target(
            model=name,
            id=",".join(m.id if plain else f"{m.id}:{m.weight:g}" for m in members),
            base_digest=self._base_digest(),
            blend=tuple(Part(lease.digest, weight) for lease, weight in pairs),
            versions=versions,
            virtual_tokens=sum(member.virtual_tokens for member in members),
            created=max(lease.created for lease in leases),
        )

    def choose(self, tenant: TenantContext, headers: Headers, model: str | None) -> str | None:
        """The adapter that a request asks for, by the words it used; None for the base.

        Where the tenant's policy has a default, that is what a request without such words gets, and
        what the word "default" means.
        """
        asked = next((headers[name] for name in ADAPTER_HEADERS if name in headers), None)
        default = self._tenants.policy.of(tenant).default_adapter
        if default is not None:
            asked, model = (default if word == DEFAULT else word for word in (asked, model))
        if asked is not None and model not in (None, asked, *self.base_names):
            raise ApiError(ErrorCode.ADAPTER_CONFLICT, param="model")
        name = model if asked is None else asked
        if name is None:
            return default
        return None if name in self.base_names else name


def _unknown(name: str) -> ApiError:
    return ApiError(ErrorCode.MODEL_NOT_FOUND, param="model", values={"model": name[:128]})


def _member(selected: Selected, lease: Lease) -> Member:
    report = orjson.loads(lease.report)
    owner = selected.adapter.owner
    return Member(
        id=f"{owner}/{lease.id}" if owner else lease.id,
        digest=lease.digest,
        weight=selected.weight,
        method=report["method"],
        targets=frozenset(report.get("targets", ())),
        exclusive=frozenset(report.get("exclusive", ())),
        virtual_tokens=report.get("virtual_tokens", 0),
        bytes=report["bytes"],
    )

"""The parts that the API is made of, put together once."""

from dataclasses import dataclass, field
from functools import partial

from starlette.requests import HTTPConnection

from weft.adapters.registry import Registry
from weft.adapters.tenancy import TenantContext
from weft.server.adapter_series import AdapterLabel
from weft.server.admission import Admission
from weft.server.audit.audit import Audit
from weft.server.audit.collector import AuditCollector
from weft.server.engine.client import EngineClient, EngineUnavailable
from weft.server.evaluation.evaluations import Evaluations
from weft.server.library import Library
from weft.server.metrics import Metrics
from weft.server.reading import Reading
from weft.server.records import Records
from weft.server.router import Router
from weft.server.settings import Settings
from weft.server.tenants import Tenants
from weft.server.tenants_metrics import TenantsCollector
from weft.server.text import Text
from weft.server.usage.counts import BASE, SEVERAL
from weft.server.usage.series import usage_series
from weft.server.usage.usage import Usage
from weft.server.vocabulary import tokenizer_remarks

_MOST_IN_BACKGROUND = 16


@dataclass(frozen=True)
class Services:
    """Everything that a route may use."""

    settings: Settings
    engine: EngineClient
    registry: Registry
    library: Library
    router: Router
    text: Text
    metrics: Metrics
    tenants: Tenants
    admission: Admission
    evaluations: Evaluations
    usage: Usage
    audit: Audit
    reading: Reading = field(default_factory=Reading)

    @classmethod
    def assemble(
        cls,
        settings: Settings,
        engine: EngineClient,
        registry: Registry,
        text: Text,
        records: Records,
    ) -> "Services":
        """Builds what is missing; raises TenantsInvalid for a tenants file that cannot be used."""
        usage, audit = records
        tenants = Tenants.of(settings)
        names = base_names(settings)
        metrics = Metrics(
            names[0],
            lambda: engine.stats,
            lambda: _slots(engine),
            lambda: engine.evictions,
        )
        metrics.add(TenantsCollector(tenants))
        known = partial(_has_series, metrics, tenants)
        metrics.add_series(partial(usage_series, usage.meter, known, names[0]))
        metrics.add(AuditCollector(audit))
        registry.on_withdraw = audit.withdrawn
        registry.on_prune = audit.pruned
        admission = Admission(settings.max_num_seqs + settings.max_queue, tenants)
        library = Library(
            engine,
            registry,
            metrics,
            tenants,
            names,
            settings.retention,
            lambda folder: tokenizer_remarks(folder, text.vocabulary),
        )
        for tenant in tenants.contexts:
            library.announce(tenant)
        return cls(
            settings=settings,
            engine=engine,
            registry=registry,
            library=library,
            router=Router(
                names,
                lambda: engine.info.model_digest,
                lambda: engine.info.adapter_bytes,
                registry,
                metrics,
                tenants,
            ),
            text=text,
            metrics=metrics,
            tenants=tenants,
            admission=admission,
            evaluations=Evaluations(
                engine, text, admission, usage.meter, _background_places(settings)
            ),
            usage=usage,
            audit=audit,
        )

    def context(self, tenant: TenantContext) -> int:
        """Positions that a tenant's sequence can have: the model's, or its own pages' if less."""
        info = self.engine.info
        pages = info.max_model_len if tenant.kv_pages is None else tenant.kv_pages * info.page_size
        return min(info.max_model_len, pages)

    @property
    def base_name(self) -> str:
        """The base model's id in the API."""
        return self.router.base_names[0]


def services_of(connection: HTTPConnection) -> Services:
    """The services of the app that got this request."""
    services: Services = connection.app.state.services
    return services


def base_names(settings: Settings) -> tuple[str, ...]:
    """What requests may call the base: its served name, else its last part or all of MODEL."""
    if settings.served_model_name:
        return (settings.served_model_name,)
    model = settings.model or ""
    return (model.rstrip("/").rpartition("/")[2], model)


def _background_places(settings: Settings) -> int:
    """How much of what the engine computes at a time may be work that can wait."""
    return max(1, min(settings.max_num_seqs // 4, _MOST_IN_BACKGROUND))


def _has_series(metrics: Metrics, tenants: Tenants, user: str, adapter: str) -> bool:
    """Whether a listed tenant's word for an adapter means the base or a registered one."""
    if user not in tenants.policy.tenants:
        return False
    owner, slash, name = adapter.rpartition("/")
    label = AdapterLabel(owner if slash else user, name)
    return adapter in (BASE, SEVERAL) or label in metrics.adapters


def _slots(engine: EngineClient) -> int:
    try:
        return engine.info.slots
    except EngineUnavailable:
        return 0

"""GET /v1/models: the base, and the adapters that the caller may use as `model`."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers

from weft.adapters.tenancy import TenantContext
from weft.adapters.version import Version
from weft.server.api.json_response import json_response
from weft.server.selection import AdapterName, Selected, parse
from weft.server.services import Services, services_of

router = APIRouter()
_STARTED = int(time.time())


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The base, then adapters and aliases by name; each id can be sent back as `model`."""
    return await asyncio.to_thread(_listed, services_of(request), request.state.tenant)


@router.get("/v1/models/{model:path}")
async def show_model(request: Request, model: str) -> Response:
    """One of them."""
    services, state = services_of(request), request.state
    with services.router.target(state.tenant, Headers(), model, state.request_id) as target:
        if not target.blend:
            return json_response(_base(services))
        if versions := _led_to(services, state.tenant, model):
            return json_response(_named(services, model, versions))
        return json_response(_model(services, model, target.digest, int(target.created)))


def _listed(services: Services, tenant: TenantContext) -> Response:
    """All that the tenant may use; of ten thousand adapters that takes a tenth of a second."""
    named = [
        _named(services, name, versions)
        for name, versions in _usable(services, tenant)
        if versions and all(version.failed is None for version in versions)
    ]
    return json_response({"object": "list", "data": [_base(services), *named]})


def _usable(services: Services, tenant: TenantContext) -> Iterator[tuple[str, tuple[Version, ...]]]:
    """What `model` may say: the tenant's own names and those that others share with it.

    With each come the versions that it leads to: one, or several of an alias that splits.
    """
    registry = services.registry
    yield from ((version.name, (version,)) for version in services.library.current(tenant))
    for alias in registry.aliases.list(tenant):
        yield alias.name, registry.ends(tenant, alias.name)
    shared = services.tenants.policy.shared_with(tenant)
    for owner, name in sorted(shared, key=lambda found: (found[0].id, found[1])):
        yield str(AdapterName(owner.id, name)), registry.ends(owner, name)


def _led_to(services: Services, tenant: TenantContext, model: str) -> tuple[Version, ...]:
    """The versions that a plain name or alias leads to; none where `model` says more than that."""
    match parse(model):
        case [Selected(adapter, None, 1.0)]:
            owner = services.tenants.policy.owner(tenant, adapter)
            return services.registry.ends(owner, adapter.name)
        case _:
            return ()


def _named(services: Services, name: str, versions: Sequence[Version]) -> dict[str, Any]:
    """A name as a model; its root is a digest where it leads to one version only."""
    digests = {version.digest for version in versions}
    root = digests.pop() if len(digests) == 1 else None
    return _model(services, name, root, max(int(version.created) for version in versions))


def _base(services: Services) -> dict[str, Any]:
    digest = services.engine.info.model_digest
    return _model(services, services.base_name, digest, _STARTED, parent=None)


def _model(
    services: Services, name: str, digest: str | None, created: int, **more: Any
) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "weft",
        "root": digest,
        "parent": services.base_name,
        "max_model_len": services.engine.info.max_model_len,
        **more,
    }

"""GET /v1/models: the base, and the adapters that the caller may use as `model`."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers

from weft.adapters.errors import UnknownAdapter
from weft.adapters.registry import Adapter
from weft.adapters.tenancy import TenantContext
from weft.server.api.json_response import json_response
from weft.server.selection import AdapterName
from weft.server.services import Services, services_of

router = APIRouter()
_STARTED = int(time.time())


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The base first, then adapters by name; each id can be sent back as `model`."""
    services = services_of(request)
    adapters = [
        _model(services, name, adapter.digest, int(adapter.created))
        for name, adapter in _usable(services, request.state.tenant)
        if adapter.failed is None
    ]
    return json_response({"object": "list", "data": [_base(services), *adapters]})


@router.get("/v1/models/{model:path}")
async def show_model(request: Request, model: str) -> Response:
    """One of them."""
    services, tenant = services_of(request), request.state.tenant
    with services.router.target(tenant, Headers(), model) as target:
        if not target.blend:
            return json_response(_base(services))
        return json_response(_model(services, model, target.digest, int(target.created)))


def _usable(services: Services, tenant: TenantContext) -> Iterator[tuple[str, Adapter]]:
    """The tenant's own adapters and those that others share with it, by what `model` calls them."""
    yield from ((adapter.name, adapter) for adapter in services.library.all(tenant))
    shared = services.tenants.policy.shared_with(tenant)
    for owner, name in sorted(shared, key=lambda found: (found[0].id, found[1])):
        with suppress(UnknownAdapter):  # it may be shared before it is there
            yield str(AdapterName(owner.id, name)), services.registry.lookup(owner, name)


def _base(services: Services) -> dict[str, Any]:
    digest = services.engine.info.model_digest
    return _model(services, services.base_name, digest, _STARTED, parent=None)


def _model(services: Services, name: str, digest: str, created: int, **more: Any) -> dict[str, Any]:
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

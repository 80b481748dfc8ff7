"""GET /v1/models: the base, and the adapters that the caller may use as `model`."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers

from weft.server.api.json_response import json_response
from weft.server.services import Services, services_of

router = APIRouter()
_STARTED = int(time.time())


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The base first, then adapters by name; each id can be sent back as `model`."""
    services = services_of(request)
    adapters = [
        _model(services, adapter.name, adapter.digest, int(adapter.created))
        for adapter in services.library.all(request.state.tenant)
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
        created = max(
            int(version.created)
            for label, digest in target.versions.items()
            for version in services.registry.versions(tenant, label.adapter)
            if version.digest == digest
        )
        return json_response(_model(services, model, target.digest, created))


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

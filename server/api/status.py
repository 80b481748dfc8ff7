"""Whether the server lives, is ready, and how it does."""

import asyncio
from importlib.metadata import version

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from weft.server.api.json_response import json_response
from weft.server.errors import ApiError, ErrorCode
from weft.server.services import services_of

router = APIRouter()


@router.get("/health")
async def health() -> Response:
    """The process lives; says nothing of the engine."""
    return json_response({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether a request would be served now: a real token was decoded lately."""
    services = services_of(request)
    if services.admission.draining:
        raise ApiError(ErrorCode.DRAINING)
    stats = services.engine.stats
    unsound = services.admission.starting or bool(stats and stats.broken_invariants)
    if unsound or not await services.engine.probe():
        raise ApiError(ErrorCode.ENGINE_UNAVAILABLE)
    return json_response({"status": "ready"})


@router.get("/version")
async def show_version() -> Response:
    """The server's own version."""
    return json_response({"version": version("weft")})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    # Of ten thousand adapters that takes seconds, in which tokens go on.
    text = await asyncio.to_thread(services_of(request).metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)

"""The ASGI application: routes, what is in front of them, and how failures are answered."""

from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from weft.server.api import (
    adapters,
    aliases,
    chat,
    completions,
    evaluations,
    lora,
    models,
    status,
    tokenize,
    usage,
)
from weft.server.api.page import page_routes
from weft.server.errors import ERROR_SCHEMA, ApiError, ErrorCode, invalid
from weft.server.front import Front
from weft.server.services import Services

_BODIES = (
    chat.ChatCompletionRequest,
    completions.CompletionRequest,
    lora.LoadLoraAdapterRequest,
    lora.UnloadLoraAdapterRequest,
    tokenize.TokenizeRequest,
    tokenize.DetokenizeRequest,
    evaluations.EvaluationRequest,
    aliases.PutAliasRequest,
    aliases.PromoteRequest,
)

_ANY_ERROR = {
    "description": "Any error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def create_app(services: Services, examples: Path | None = None) -> FastAPI:
    """The whole HTTP interface of one engine.

    examples: prompts that the page offers, JSON `[{"prompt": str, ...}, ...]`
    """
    app = FastAPI(title="weft", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    for routes in (
        chat.router,
        completions.router,
        models.router,
        adapters.router,
        adapters.changing,
        aliases.router,
        aliases.changing,
        evaluations.router,
        lora.router,
        tokenize.router,
        status.router,
        usage.router,
        page_routes(examples),
    ):
        app.include_router(routes)
    app.add_middleware(
        Front,
        tenants=services.tenants,
        metrics=services.metrics,
        audit=services.audit,
        proxy_header=services.settings.trust_proxy_header,
    )
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    _describe(app)
    return app


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        raise ApiError(ErrorCode.METHOD_NOT_ALLOWED, values={"method": request.method})
    if error.status_code == 404:
        values = {"method": request.method, "path": request.url.path[:128]}
        raise ApiError(ErrorCode.NOT_FOUND, values=values)
    raise ApiError(ErrorCode.INTERNAL_ERROR)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    """A path or query parameter of the wrong type."""
    assert isinstance(error, RequestValidationError)
    detail = error.errors()[0]
    message = detail["msg"].removeprefix("Input ")
    raise invalid(str(detail["loc"][-1]), message[:1].lower() + message[1:])


def _describe(app: FastAPI) -> None:
    """Adds to the OpenAPI document what routes read and answer by themselves: bodies, errors."""
    generated = app.openapi
    schemas: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (schema, "validation") for schema in _BODIES
    ]

    def openapi() -> dict[str, Any]:
        document = generated()
        _, definitions = models_json_schema(schemas, ref_template="#/components/schemas/{model}")
        known = document.setdefault("components", {}).setdefault("schemas", {})
        known.update(definitions["$defs"], Error=ERROR_SCHEMA)
        for unused in ("HTTPValidationError", "ValidationError"):
            known.pop(unused, None)
        for operation in (o for methods in document["paths"].values() for o in methods.values()):
            operation["responses"].pop("422", None)  # FastAPI's own, which is never sent
            operation["responses"]["default"] = _ANY_ERROR
        return document

    app.openapi = openapi  # type: ignore[method-assign]

"""A request's JSON body, read strictly into its schema. Knows no routes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from weft.adapters.errors import AdapterInvalid
from weft.adapters.strict_json import parse_object
from weft.server.errors import ApiError, ErrorCode, invalid, unsupported

MAX_JSON_BYTES = 8 * 1024 * 1024
MAX_JSON_DEPTH = 32
SILENCE_SECONDS = 30.0
LEAST_PACE = 1024
"""Bytes a second of a body, on the whole, once it is silent for so long in all."""

Schema = TypeVar("Schema", bound="RequestBody")


class RequestBody(BaseModel):
    """Base of all request schemas: exact types, no field that is not known; null is "not given"."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {
            name: value
            for name, value in content.items()
            if value is not None or name not in cls.model_fields
        }


def json_body(schema: type[Schema]) -> Callable[[Request], Awaitable[Schema]]:
    """A FastAPI dependency that reads a body of this schema; raises ApiError."""

    async def read(request: Request) -> Schema:
        return parse(schema, await read_json_bytes(request))

    return read


def describes(schema: type[RequestBody]) -> dict[str, Any]:
    """What OpenAPI should say of a route that reads this schema (FastAPI's `openapi_extra`)."""
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}
    }


def parse(schema: type[Schema], data: bytes) -> Schema:
    """Strict JSON, then the schema; raises ApiError naming the field at fault."""
    try:
        content = parse_object(data, "body", MAX_JSON_DEPTH)
    except AdapterInvalid as refused:
        raise ApiError(ErrorCode.INVALID_JSON, values={"reason": refused.reason}) from None
    return validated(schema, content)


def validated(schema: type[Schema], content: Any) -> Schema:
    """What was parsed from JSON, as the schema has it; raises ApiError naming the field."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _api_error(error.errors(include_url=False)[0]) from None


async def read_json_bytes(request: Request) -> bytes:
    """The body of a request that says it is JSON."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        values = {"expected": "application/json"}
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, values=values)
    return await read_bytes(request, MAX_JSON_BYTES)


async def read_bytes(request: Request, limit: int) -> bytes:
    """The whole body, of at most `limit` bytes; raises ApiError."""
    body = bytearray()
    async for chunk in in_time(request.stream()):
        body += chunk
        if len(body) > limit:
            values = {"what": "body", "limit": limit}
            raise ApiError(ErrorCode.REQUEST_TOO_LARGE, values=values)
    return bytes(body)


async def in_time(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A body's pieces; raises ApiError where none comes for long, or they come too slowly."""
    clock = asyncio.get_running_loop().time
    began, size = clock(), 0
    try:
        while True:
            late = began + SILENCE_SECONDS + size / LEAST_PACE
            async with asyncio.timeout_at(min(late, clock() + SILENCE_SECONDS)):
                chunk = await anext(stream, None)
            if chunk is None:
                return
            size += len(chunk)
            yield chunk
    except TimeoutError:
        raise ApiError(ErrorCode.REQUEST_TIMEOUT) from None


def _api_error(detail: ErrorDetails) -> ApiError:
    param = _path(detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            return unsupported(param)
        case "unsupported":
            return unsupported(param, detail["msg"])
        case _:
            message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
            return invalid(param, message[:1].lower() + message[1:])


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`; union tags, written `<so>`, are no part of what the client sent."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}" if path else part
    return path

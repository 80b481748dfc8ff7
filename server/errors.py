"""Every error a client can see: code, HTTP status, type and message. Knows no routes.

Messages are built from these templates only; the text of an exception goes to the log, never out.
"""

import errno
import logging
from collections import defaultdict
from collections.abc import Mapping
from enum import Enum
from typing import Any

import orjson

from weft.adapters.errors import (
    AdapterCorrupt,
    AdapterInUse,
    AdapterInvalid,
    AliasInvalid,
    LoadFailed,
    StorageFull,
    UnknownAdapter,
    VersionConflict,
)
from weft.server.engine.client import EngineError, EngineUnavailable

log = logging.getLogger("weft.api")
_INVALID = "invalid_request_error"
_SERVER = "server_error"


class ErrorCode(Enum):
    """The closed catalogue. `code` on the wire is the member's name in lower case."""

    INVALID_JSON = (400, _INVALID, "The body is not valid JSON: {reason}.")
    INVALID_PARAMETER = (400, _INVALID, "Invalid '{param}': {reason}.")
    UNSUPPORTED_PARAMETER = (400, _INVALID, "'{param}' is not supported by this server{reason}.")
    ADAPTER_CONFLICT = (
        400,
        _INVALID,
        "The adapter header and 'model' name different adapters; send one of them, or both alike.",
    )
    CONTEXT_LENGTH_EXCEEDED = (
        400,
        _INVALID,
        "This model's context is {limit} tokens; {prompt} tokens of prompt and {answer} of answer "
        "were asked for.",
    )
    INVALID_API_KEY = (
        401,
        "authentication_error",
        "The API key is missing or wrong; send 'Authorization: Bearer KEY'.",
    )
    ADAPTER_LOADING_DISABLED = (
        403,
        "permission_error",
        "Loading adapters at run time is off; start the server with {flag}.",
    )
    FORBIDDEN = (403, "permission_error", "This is not allowed: {reason}.")
    QUOTA_EXCEEDED = (
        403,
        "permission_error",
        "Your quota of {limit} {what} is used up; remove some, or ask for more.",
    )
    MODEL_NOT_FOUND = (
        404,
        _INVALID,
        "The model '{model}' does not exist or you do not have access to it.",
    )
    NOT_FOUND = (404, _INVALID, "There is no route {method} {path}.")
    EVALUATION_NOT_FOUND = (404, _INVALID, "There is no evaluation '{id}', or not any more.")
    METHOD_NOT_ALLOWED = (405, _INVALID, "This route does not take the method {method}.")
    REQUEST_TIMEOUT = (408, _INVALID, "The body did not arrive in time.")
    VERSION_CONFLICT = (409, _INVALID, "If-Match does not name the current version's digest.")
    ADAPTER_IN_USE = (
        409,
        _INVALID,
        "The alias '{alias}' leads to it; let it lead elsewhere first.",
    )
    REQUEST_TOO_LARGE = (413, _INVALID, "The {what} is larger than {limit} bytes.")
    UNSUPPORTED_MEDIA_TYPE = (415, _INVALID, "The Content-Type must be {expected}.")
    ADAPTER_INVALID = (422, _INVALID, "The adapter was refused: {where}: {reason}.")
    RATE_LIMIT_EXCEEDED = (
        429,
        "rate_limit_error",
        "The limit of {limit} a minute is reached; try again later.",
        1,
    )
    QUEUE_FULL = (429, "rate_limit_error", "The queue is full; try again later.", 1)
    REQUEST_HEADER_FIELDS_TOO_LARGE = (431, _INVALID, "The headers are larger than {limit} bytes.")
    INTERNAL_ERROR = (500, _SERVER, "Something went wrong here; the request id is {request_id}.")
    ENGINE_UNAVAILABLE = (503, _SERVER, "The engine is starting or restarting; try again.", 5)
    DRAINING = (503, _SERVER, "The server is shutting down; try another one.", 5)
    OUT_OF_MEMORY = (503, _SERVER, "There was not enough memory for this request.", 1)
    ADAPTER_CORRUPT = (503, _SERVER, "The adapter's stored files are damaged; upload it again.")
    DEADLINE_EXCEEDED = (504, _SERVER, "The request took longer than allowed.")
    INSUFFICIENT_STORAGE = (507, _SERVER, "The disk is full; nothing was changed.")

    def __init__(
        self, status: int, kind: str, template: str, retry_after: int | None = None
    ) -> None:
        self.status = status
        self.kind = kind
        self.template = template
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        """The error's name on the wire."""
        return self.name.lower()

    @classmethod
    def named(cls, code: str | None) -> "ErrorCode":
        """The member called `code` on the wire; INTERNAL_ERROR where there is none."""
        return cls.__members__.get((code or "").upper(), cls.INTERNAL_ERROR)


ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": sorted({error.kind for error in ErrorCode})},
                "param": {"type": ["string", "null"]},
                "code": {"enum": [error.code for error in ErrorCode]},
            },
        }
    },
}
"""The JSON schema of every error's body."""

# The rest of the body would be taken for the next request, or for nothing useful.
_UNREAD = frozenset(
    {
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.REQUEST_TIMEOUT,
        ErrorCode.REQUEST_TOO_LARGE,
        ErrorCode.REQUEST_HEADER_FIELDS_TOO_LARGE,
    }
)


class ApiError(Exception):
    """An answer of the catalogue; `values` fill its template, `param` names the field at fault.

    retry_after: seconds, where it is known better than the catalogue does
    """

    def __init__(
        self,
        error: ErrorCode,
        *,
        param: str | None = None,
        values: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(error.code)
        self.error = error
        self.param = param
        self.retry_after = error.retry_after if retry_after is None else retry_after
        # A value that nobody gave is no reason to fail while failing.
        self._values = defaultdict(lambda: "unknown", {"param": param, **(values or {})})

    def within(self, where: str) -> "ApiError":
        """The same error about a part of the request that is found at `where`."""
        param = f"{where}.{self.param}" if self.param else where
        return ApiError(self.error, param=param, values={**self._values, "param": param})

    def body(self, request_id: str) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        self._values["request_id"] = request_id
        message = self.error.template.format_map(self._values)
        return {
            "error": {
                "message": message,
                "type": self.error.kind,
                "param": self.param,
                "code": self.error.code,
            }
        }

    def body_bytes(self, request_id: str) -> bytes:
        """The error object as JSON."""
        return orjson.dumps(self.body(request_id))

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.error in _UNREAD:
            headers["Connection"] = "close"
        if self.error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def invalid(param: str, reason: str) -> ApiError:
    """A field with a wrong value."""
    return ApiError(ErrorCode.INVALID_PARAMETER, param=param, values={"reason": reason})


def unsupported(param: str, reason: str = "") -> ApiError:
    """A field, or a value of it, that this server does not serve."""
    values = {"reason": f": {reason}" if reason else ""}
    return ApiError(ErrorCode.UNSUPPORTED_PARAMETER, param=param, values=values)


def translate(error: Exception) -> ApiError:
    """The catalogue's answer to any failure; an unforeseen one is logged and becomes a 500."""
    match error:
        case ApiError():
            return error
        case AdapterInvalid():
            values = {"where": error.where, "reason": error.reason}
            return ApiError(ErrorCode.ADAPTER_INVALID, param=error.where, values=values)
        case UnknownAdapter():
            return ApiError(ErrorCode.MODEL_NOT_FOUND, param="model", values={"model": error.name})
        case AliasInvalid():
            return invalid("targets", str(error))
        case AdapterInUse():
            return ApiError(ErrorCode.ADAPTER_IN_USE, values={"alias": error.alias})
        case VersionConflict():
            return ApiError(ErrorCode.VERSION_CONFLICT, param="If-Match")
        case AdapterCorrupt():
            return ApiError(ErrorCode.ADAPTER_CORRUPT)
        case StorageFull() | OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return ApiError(ErrorCode.INSUFFICIENT_STORAGE)
        case EngineUnavailable() | LoadFailed():
            return ApiError(ErrorCode.ENGINE_UNAVAILABLE)
        case EngineError():
            log.warning("the engine reported %s: %s", error.code, error)
            return ApiError(ErrorCode.named(error.code))
        case _:
            log.error("unforeseen failure", exc_info=error)
            return ApiError(ErrorCode.INTERNAL_ERROR)

"""What adapters a tenant has by number and size, beside what its quotas allow. Changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from weft.adapters.registry import Adapter
from weft.server.engine.messages import LoadReport
from weft.server.errors import ApiError, ErrorCode
from weft.server.policy import Quotas

_BYTES = "bytes of adapters"


@dataclass(frozen=True)
class Addition:
    """A version about to be put under a name. file_bytes: of its weights, as they are stored"""

    name: str
    file_bytes: int
    report: LoadReport


@dataclass(frozen=True)
class Holdings:
    """A tenant's adapters, and the bytes that are stored of each of their digests."""

    adapters: Sequence[Adapter]
    stored: Mapping[str, int]

    def check_name(self, quotas: Quotas, name: str) -> None:
        """Raises ApiError where the tenant may have no version of `name`, however small it is."""
        others = sum(adapter.name != name for adapter in self.adapters)
        _check(others + 1, quotas.adapters, "adapters")
        _check(sum(self.stored.values()), quotas.adapter_bytes, _BYTES)

    def room(self, limit: int) -> int:
        """Bytes that may come within a limit; what is stored may come again, not stored twice."""
        return max(limit - sum(self.stored.values()), 0, *self.stored.values())

    def check_addition(self, quotas: Quotas, new: Addition) -> None:
        """Raises ApiError where the tenant may not have this version beside what it has."""
        self.check_name(quotas, new.name)
        stored = {**self.stored, new.report.digest: new.file_bytes}
        _check(sum(stored.values()), quotas.adapter_bytes, _BYTES)
        if quotas.delta_bytes is not None:
            others = [_reported(a, "delta_bytes") for a in self.adapters if a.name != new.name]
            words = "bytes of dense and sparse deltas and whole parameters"
            _check(sum(others) + new.report.delta_bytes, quotas.delta_bytes, words)

    def check_pin(self, quotas: Quotas, name: str) -> None:
        """Raises ApiError where the tenant may not have this name pinned beside what it has."""
        if quotas.pinned_bytes is not None:
            kept = [_reported(a, "bytes") for a in self.adapters if a.pinned or a.name == name]
            _check(sum(kept), quotas.pinned_bytes, "bytes of pinned adapters")


def _reported(adapter: Adapter, field: str) -> int:
    value = orjson.loads(adapter.report).get(field, 0)
    return value if isinstance(value, int) else 0


def _check(amount: int, limit: int | None, what: str) -> None:
    if limit is not None and amount > limit:
        raise exceeded(limit, what)


def exceeded(limit: int, what: str) -> ApiError:
    """The answer where a tenant would have more than its quota allows."""
    return ApiError(ErrorCode.QUOTA_EXCEEDED, values={"limit": limit, "what": what})

"""The tenants file: TOML to a Policy, told whole what is wrong with it. Knows no edits, no keys.

[defaults]                        # for tenants that do not say otherwise
weight = 1.0
quotas = { requests_per_minute = 600 }

[tenants.acme]
default_adapter = "support"       # for requests that name none
weight = 2.0                      # share of the engine beside others
share = { legal = ["bolt"], faq = ["*"] }
quotas = { tokens_per_minute = 200_000, adapter_bytes = "10GiB", kv_pages = 512 }

[[tenants.acme.keys]]
sha256 = "<64 hexadecimal digits>"
role = "use"                      # or "manage", "admin"
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic_core import ErrorDetails

from weft.adapters.tenancy import TenantContext
from weft.adapters.version import NAME
from weft.server.errors import ApiError
from weft.server.policy import EVERYBODY, TENANT_ID, Key, Policy, Quotas, Role, TenantPolicy
from weft.server.selection import parse
from weft.server.settings import parse_size

MAX_BYTES = 16 << 20
RoleName = Literal["use", "manage", "admin"]


class TenantsInvalid(ValueError):
    """A tenants file that cannot be used: one line for each fault, naming the tenant and field."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def _adapter_words(value: str) -> str:
    try:
        if parse(value) is not None:
            return value
    except ApiError:
        pass
    raise ValueError("should name an adapter, as `model` does in a request")


def _digest(value: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("should be 64 lower-case hexadecimal digits")
    return value


def _name(pattern: str, value: str) -> str:
    if not re.fullmatch(pattern, value):
        raise ValueError(f"should match {pattern}")
    return value


TenantName = Annotated[str, AfterValidator(lambda value: _name(TENANT_ID, value))]
OwnAdapter = Annotated[str, AfterValidator(lambda value: _name(NAME.pattern, value))]
Whom = Annotated[str, AfterValidator(lambda value: _name(rf"\*|{TENANT_ID}", value))]
Some = Annotated[int, Field(ge=1)] | None
Any0 = Annotated[int, Field(ge=0)] | None
Size = Annotated[Any0, BeforeValidator(parse_size)]
Weight = Annotated[float, Field(gt=0, le=1000)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Quotas(_Table):
    requests_per_minute: Some = None
    tokens_per_minute: Some = None
    concurrent_requests: Some = None
    queued_requests: Any0 = None
    adapters: Any0 = None
    adapter_bytes: Size = None
    delta_bytes: Size = None
    pinned_bytes: Size = None
    kv_pages: Some = None


class _Key(_Table):
    sha256: Annotated[str, AfterValidator(_digest)]
    role: RoleName = "use"
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None


class _Defaults(_Table):
    weight: Weight = 1.0
    quotas: _Quotas = _Quotas()


class _Tenant(_Table):
    keys: list[_Key] = []
    default_adapter: Annotated[str, AfterValidator(_adapter_words)] | None = None
    weight: Weight | None = None
    share: dict[OwnAdapter, list[Whom]] = {}
    quotas: _Quotas = _Quotas()


class _File(_Table):
    defaults: _Defaults = _Defaults()
    tenants: dict[TenantName, _Tenant] = {}


class Fault(NamedTuple):
    """What is wrong, and in which field."""

    where: str
    reason: str


def read_tenants(path: Path) -> Policy:
    """The policy in a file; raises TenantsInvalid, naming the file in each line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TenantsInvalid([f"{path}: {error.strerror}"]) from None
    return parse_tenants(data, str(path))


def parse_tenants(data: bytes, source: str) -> Policy:
    """The policy in a file's content; `source` is what errors call the file."""
    if len(data) > MAX_BYTES:
        raise TenantsInvalid([f"{source}: is larger than {MAX_BYTES} bytes"])
    try:
        content = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise TenantsInvalid([f"{source}: {error}"]) from None
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        faults = [_fault(detail) for detail in error.errors(include_url=False)]
    else:
        policy = _policy(file)
        faults = list(_faults(file, policy))
        if not faults:
            return policy
    raise TenantsInvalid([f"{source}: {where}: {reason}" for where, reason in faults])


def _policy(file: _File) -> Policy:
    defaults = file.defaults
    tenants = {}
    for name, table in file.tenants.items():
        given = defaults.quotas.model_dump(exclude_unset=True)
        quotas = Quotas(**given | table.quotas.model_dump(exclude_unset=True))
        weight = defaults.weight if table.weight is None else table.weight
        tenants[name] = TenantPolicy(
            TenantContext(name, weight, quotas.kv_pages),
            tuple(
                Key(bytes.fromhex(key.sha256), Role[key.role.upper()], key.created, key.expires)
                for key in table.keys
            ),
            quotas,
            table.default_adapter,
            {adapter: frozenset(whom) for adapter, whom in table.share.items()},
        )
    return Policy(tenants)


def _faults(file: _File, policy: Policy) -> Iterator[Fault]:
    """What is wrong although each field alone is right."""
    if not any(table.keys for table in file.tenants.values()):
        yield Fault("tenants", "none has a key; `weft tenants add` makes one")
    seen: dict[str, str] = {}
    for name, table in file.tenants.items():
        for index, key in enumerate(table.keys):
            first = seen.setdefault(key.sha256, f"tenants.{name}.keys[{index}]")
            if first != (here := f"tenants.{name}.keys[{index}]"):
                yield Fault(f"{here}.sha256", f"is the key of {first} too")
        quotas = policy.tenants[name].quotas
        if quotas.queued_requests is not None and quotas.concurrent_requests is None:
            where = f"tenants.{name}.quotas.queued_requests"
            yield Fault(where, "none waits where concurrent_requests is not given")
        for adapter, whom in table.share.items():
            for other in whom:
                if other != EVERYBODY and other not in file.tenants:
                    yield Fault(f"tenants.{name}.share.{adapter}", f"there is no tenant {other!r}")
        yield from _default_faults(name, policy)


def _default_faults(name: str, policy: Policy) -> Iterator[Fault]:
    tenant = policy.tenants[name]
    for selected in parse(tenant.default_adapter or "") or ():
        if policy.owner(tenant.context, selected.adapter).id == "":
            reason = f"{selected.adapter} is not shared with {name}"
            yield Fault(f"tenants.{name}.default_adapter", reason)


def _fault(detail: ErrorDetails) -> Fault:
    if detail["type"] == "extra_forbidden":
        return Fault(_path(detail["loc"]), "there is no such field")
    reason = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value: Any = detail["input"]
    # What stands where a hash should be may be a key.
    shown = isinstance(value, str | int | float) and "sha256" not in detail["loc"]
    quoted = f", not {repr(value)[:80]}" if shown else ""
    return Fault(_path(detail["loc"]), f"{reason[:1].lower()}{reason[1:]}{quoted}")


def _path(location: tuple[int | str, ...]) -> str:
    """`tenants.acme.keys[0].role`; pydantic's own words about the place are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("[key]", "nullable", "function-after"):
            path += f".{part}" if path else part
    return path or "the file"

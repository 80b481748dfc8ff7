"""`weft tenants …`: makes, lists and removes the keys of a tenants file."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from weft.server.cli.console import Refusal, complain, err, out, print_rows
from weft.server.policy import Key, TenantPolicy
from weft.server.tenants_editor import TenantsEditor
from weft.server.tenants_file import RoleName, TenantsInvalid, read_tenants

app = typer.Typer(no_args_is_help=True, help="Keeps the tenants file of `weft serve --tenants`.")

File = Annotated[
    Path, typer.Option("--tenants", envvar="WEFT_TENANTS", metavar="FILE", help="The file.")
]
T = TypeVar("T")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The tenant's name.")]


@app.command("add")
def add(
    name: Name,
    tenants: File,
    role: Annotated[
        RoleName,
        typer.Option(help="use: answers; manage: also its adapters; admin: also the whole server."),
    ] = "use",
) -> None:
    """Adds a tenant, or another key to it, and prints the key: this once and never again."""
    _print_key(name, lambda: TenantsEditor(tenants).add_key(name, role, _now()))


@app.command("rotate")
def rotate(
    name: Name,
    tenants: File,
    role: Annotated[
        RoleName | None, typer.Option(help="Of the keys; needed where there are several.")
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="How long the old keys still open.")
    ] = 24.0,
) -> None:
    """Makes a key in the place of a tenant's others and prints it: this once and never again."""
    hours = timedelta(hours=grace)
    _print_key(name, lambda: TenantsEditor(tenants).rotate(name, role, _now(), hours))


@app.command("remove")
def remove(
    name: Name,
    tenants: File,
    key: Annotated[
        str | None, typer.Option(metavar="ID", help="Remove this key only, by its id.")
    ] = None,
) -> None:
    """Removes a tenant, or one of its keys; its adapters stay in the server's state folder."""
    _told(lambda: TenantsEditor(tenants).remove(name, key))
    out.print(f"{name}: key {key} removed" if key else f"{name}: removed")


@app.command("list")
def list_tenants(tenants: File) -> None:
    """Lists tenants and their keys, of which only ids are known."""
    policy = _told(lambda: read_tenants(tenants))
    rows = [row for tenant in policy.tenants.values() for row in _rows(tenant)]
    print_rows([("tenant", "key", "role", "created", "expires", "default adapter"), *rows])


def _rows(tenant: TenantPolicy) -> list[tuple[str, ...]]:
    default = tenant.default_adapter or "-"
    if not tenant.keys:
        return [(tenant.context.id, "none", "-", "-", "-", default)]
    return [(tenant.context.id, *_cells(key), default) for key in tenant.keys]


def _cells(key: Key) -> tuple[str, ...]:
    times = [t.astimezone(UTC).isoformat(" ") if t else "-" for t in (key.created, key.expires)]
    expired = " (expired)" if key.expired(_now()) else ""
    return key.id, key.role.name.lower(), times[0], times[1] + expired


def _print_key(name: str, make: Callable[[], str]) -> None:
    """The key alone on the standard output, so that a script can take it."""
    key = _told(make)
    err.print(f"{name}: this is the only time that the key is shown")
    out.print(key)


def _told(call: Callable[[], T]) -> T:
    """What the call gives; what it refuses is told line by line."""
    try:
        return call()
    except TenantsInvalid as refusal:
        *lines, last = refusal.lines
        for line in lines:
            complain(line)
        raise Refusal(last, 2) from None
    except OSError as error:
        raise Refusal(f"--tenants: {error.filename}: {error.strerror}") from None


def _now() -> datetime:
    return datetime.now(UTC)

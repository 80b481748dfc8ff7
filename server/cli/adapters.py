"""`weft adapters …`: lists, loads and removes the adapters of a running server."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from weft.adapters.checkpoint import CONFIG_NAME, read_checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.server.cli.client import Client, ServerRefusal, Upload
from weft.server.cli.console import Refusal, err, human_size, out, print_fields, print_rows

app = typer.Typer(no_args_is_help=True, help="Drives the adapters of a running server.")

Url = Annotated[str, typer.Option(envvar="WEFT_URL", help="The server's address.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="WEFT_API_KEY", help="The key to send.", show_default=False)
]
IfMatch = Annotated[
    str | None, typer.Option(help="Change it only while it has this digest.", show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name.")]
DEFAULT_URL = "http://127.0.0.1:8000"
_OUTCOME = ("id", "digest", "state", "tier", "method", "rank", "bytes", "warnings")
"""What a person wants to know of a change; `show` tells the rest."""


def _route(name: str, verb: str = "") -> str:
    return f"/v1/adapters/{quote(name, safe='')}{verb and f'/{verb}'}"


def _alias_route(name: str, verb: str = "") -> str:
    return f"/v1/aliases/{quote(name, safe='')}{verb and f'/{verb}'}"


@app.command("list")
def list_adapters(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Lists the adapters that the key may use, and where each one is."""
    client, more = Client(url, api_key), True
    adapters: list[dict[str, Any]] = []
    while more:
        after = f"?after={quote(adapters[-1]['name'])}" if adapters else ""
        page = client.call("GET", f"/v1/adapters{after}")
        adapters += page["data"]
        more = page["has_more"]
    if not adapters:
        out.print("no adapters")
        return
    columns = ("name", "version", "state", "tier", "method", "rank", "bytes", "refs")
    rows = [[_cell(column, adapter.get(column)) for column in columns] for adapter in adapters]
    print_rows([columns, *rows])


@app.command("show")
def show(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Shows all that the server knows of an adapter."""
    _print(Client(url, api_key).call("GET", _route(name)))


@app.command("load")
def load(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="The adapter's folder, or what --repo or --on-server say."
        ),
    ],
    repo: Annotated[bool, typer.Option("--repo", help="SOURCE is a hub id.")] = False,
    on_server: Annotated[
        bool, typer.Option("--on-server", help="SOURCE is a folder on the server's machine.")
    ] = False,
    if_match: IfMatch = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check it, change nothing.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Loads a new version of an adapter; returns when the server can serve it."""
    if repo and on_server:
        raise Refusal("--repo and --on-server: give one of them", 2)
    path = _route(name) + ("?dry_run=true" if dry_run else "")
    headers = _guard(if_match)
    client = Client(url, api_key)
    if repo or on_server:
        body = {"repo" if repo else "path": source}
        with err.status(f"{name}: loading"):
            report = client.call("PUT", path, body, headers)
    else:
        report = _upload(Path(source), lambda upload: client.call("PUT", path, upload, headers))
    _print(report if dry_run else _outcome(report))


@app.command("unload")
def unload(
    name: Name, if_match: IfMatch = None, url: Url = DEFAULT_URL, api_key: ApiKey = None
) -> None:
    """Removes an adapter; requests that run with it are finished first."""
    Client(url, api_key).call("DELETE", _route(name), headers=_guard(if_match))
    out.print(f"{name}: removed")


@app.command("pin")
def pin(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Keeps an adapter on the device."""
    Client(url, api_key).call("POST", _route(name, "pin"))
    out.print(f"{name}: pinned")


@app.command("unpin")
def unpin(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Lets an adapter leave the device when others need its place."""
    Client(url, api_key).call("POST", _route(name, "unpin"))
    out.print(f"{name}: unpinned")


@app.command("versions")
def versions(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Lists the versions of an adapter that are kept, and marks the current one."""
    shown = Client(url, api_key).call("GET", _route(name))
    columns = ("version", "created", "file_bytes", "digest", "reason")
    rows = [
        ["*" if version["current"] else "", *(_cell(name, version[name]) for name in columns)]
        for version in shown["versions"]
    ]
    print_rows([["", *columns], *rows])


@app.command("rollback")
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An adapter or an alias.")],
    to: Annotated[
        int | None, typer.Option(min=1, help="An adapter's version, if not the one before.")
    ] = None,
    if_match: IfMatch = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Points an adapter back to the version before, or an alias to where it led before."""
    client, headers = Client(url, api_key), _guard(if_match)
    try:
        path = _route(name, "rollback") + (f"?version={to}" if to else "")
        _print(_outcome(client.call("POST", path, headers=headers)))
    except ServerRefusal as refusal:
        if refusal.code != "model_not_found" or to:
            raise
        _print(client.call("POST", _alias_route(name, "rollback"), headers=headers))


@app.command("alias")
def alias(
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The name to make or change.")],
    targets: Annotated[
        str,
        typer.Argument(
            metavar="TARGETS",
            help="Where it leads: an adapter, name@version or alias, or several with weights: "
            "support@1=95,support@2=5.",
        ),
    ],
    if_match: IfMatch = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Lets a name lead to other names, all requests or shares of them."""
    body = {"targets": _weights(targets)}
    _print(Client(url, api_key).call("PUT", _alias_route(name), body, _guard(if_match)))


@app.command("aliases")
def aliases(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Lists the aliases and where they lead."""
    found = Client(url, api_key).call("GET", "/v1/aliases")["data"]
    if not found:
        out.print("no aliases")
        return
    columns = ("name", "targets", "previous")
    cells = [[item["name"], _shares(item["targets"]), _shares(item["previous"])] for item in found]
    print_rows([columns, *cells])


@app.command("promote")
def promote(
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The one of its targets that takes all.")
    ],
    if_match: IfMatch = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Lets one of an alias's targets take all requests."""
    path, body = _alias_route(name, "promote"), {"target": target}
    _print(Client(url, api_key).call("POST", path, body, _guard(if_match)))


@app.command("unalias")
def unalias(
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")],
    if_match: IfMatch = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Forgets an alias; what it led to stays."""
    Client(url, api_key).call("DELETE", _alias_route(name), headers=_guard(if_match))
    out.print(f"{name}: removed")


def _weights(text: str) -> dict[str, float]:
    """`stable=95,canary=5` as targets with weights; a target alone takes all."""
    targets: dict[str, float] = {}
    for part in text.split(","):
        target, equals, weight = part.strip().partition("=")
        try:
            targets[target] = float(weight) if equals else 100.0
        except ValueError:
            raise Refusal(f"TARGETS: {part.strip()!r} is not TARGET=WEIGHT", 2) from None
    return targets


def _shares(targets: Mapping[str, float] | None) -> str:
    return ",".join(f"{target}={weight:g}" for target, weight in (targets or {}).items()) or "-"


def _guard(if_match: str | None) -> dict[str, str]:
    return {"If-Match": if_match} if if_match else {}


def _upload(folder: Path, send: Callable[[Upload], Any]) -> Any:
    """Sends an adapter's two files, after a look that spares sending what would be refused."""
    try:
        checkpoint = read_checkpoint(folder)
    except AdapterInvalid as refusal:
        raise Refusal(f"{folder}: {refusal}") from None
    if checkpoint.head is not None:
        raise Refusal(
            f"{folder}: a head cannot be uploaded: load the folder by its path, or remove "
            f"{checkpoint.head.weights.name} if the head was not trained"
        )
    weights = checkpoint.weights
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(f"{folder.name}: sending", total=weights.stat().st_size)
        upload = Upload.of(
            weights.parent / CONFIG_NAME, weights, on_sent=lambda sent: bar.advance(task, sent)
        )
        return send(upload)


def _outcome(adapter: Mapping[str, Any]) -> dict[str, Any]:
    return {name: adapter[name] for name in _OUTCOME}


def _print(fields: Mapping[str, Any]) -> None:
    print_fields({name: _cell(name, value) for name, value in fields.items()})


def _cell(name: str, value: Any) -> str:
    """A value of the server's answer as a person reads it."""
    if value in (None, [], {}):
        return "-"
    match value:
        case int() if name.endswith("bytes"):
            return human_size(value)
        case int() if name in {"created", "last_used", "changed"}:
            return datetime.fromtimestamp(value, UTC).isoformat(sep=" ")
        case float():
            return f"{value:.4g}"
        case list():
            return "\n".join(_cell(name, item) for item in value)
        case dict():
            cells = (f"{key}: {_cell(key, item)}" for key, item in value.items())
            return "\n".join(cell.replace("\n", "\n  ") for cell in cells)
    return str(value)

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
from weft.server.cli.client import Client, Upload
from weft.server.cli.console import Refusal, err, human_size, out, print_fields, print_rows

app = typer.Typer(no_args_is_help=True, help="Drives the adapters of a running server.")

Url = Annotated[str, typer.Option(envvar="WEFT_URL", help="The server's address.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="WEFT_API_KEY", help="The key to send.", show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name.")]
DEFAULT_URL = "http://127.0.0.1:8000"


def _route(name: str, verb: str = "") -> str:
    return f"/v1/adapters/{quote(name, safe='')}{verb and f'/{verb}'}"


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
    if_match: Annotated[
        str | None, typer.Option(help="Replace only the version with this digest.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check it, change nothing.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Loads a new version of an adapter; returns when the server can serve it."""
    if repo and on_server:
        raise Refusal("--repo and --on-server: give one of them", 2)
    path = _route(name) + ("?dry_run=true" if dry_run else "")
    headers = {"If-Match": if_match} if if_match else {}
    client = Client(url, api_key)
    if repo or on_server:
        body = {"repo" if repo else "path": source}
        with err.status(f"{name}: loading"):
            report = client.call("PUT", path, body, headers)
    else:
        report = _upload(Path(source), lambda upload: client.call("PUT", path, upload, headers))
    _print(report)


@app.command("unload")
def unload(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Removes an adapter; requests that run with it are finished first."""
    Client(url, api_key).call("DELETE", _route(name))
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


@app.command("rollback")
def rollback(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Points a name back to the version before."""
    _print(Client(url, api_key).call("POST", _route(name, "rollback")))


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


def _print(fields: Mapping[str, Any]) -> None:
    print_fields({name: _cell(name, value) for name, value in fields.items()})


def _cell(name: str, value: Any) -> str:
    """A value of the server's answer as a person reads it."""
    if value in (None, [], {}):
        return "-"
    match value:
        case int() if name.endswith("bytes"):
            return human_size(value)
        case int() if name in {"created", "last_used"}:
            return datetime.fromtimestamp(value, UTC).isoformat(sep=" ")
        case float():
            return f"{value:.4g}"
        case list():
            return "\n".join(_cell(name, item) for item in value)
        case dict():
            cells = (f"{key}: {_cell(key, item)}" for key, item in value.items())
            return "\n".join(cell.replace("\n", "\n  ") for cell in cells)
    return str(value)

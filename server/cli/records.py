"""`weft usage` and `weft audit`: what a server writes about itself."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from weft.server.audit.journal import JournalInvalid, verify
from weft.server.cli.adapters import DEFAULT_URL, ApiKey, Url
from weft.server.cli.client import Client
from weft.server.cli.console import Refusal, human_size, out, print_rows

audit_app = typer.Typer(no_args_is_help=True, help="Looks at a server's audit log.")
_NUMBERS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
Time = Annotated[
    str | None, typer.Option(metavar="TIME", help="Like 2026-01-31, UTC, or seconds since 1970.")
]


def usage(
    start: Time = None,
    end: Time = None,
    hourly: Annotated[bool, typer.Option("--hourly", help="By hour instead of by day.")] = False,
    whose: Annotated[
        str | None, typer.Option("--tenant", help="Only this one, with an admin's key.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Shows what was used of which adapters; of the last seven days, if not told otherwise."""
    asked = {"start": start, "end": end, "tenant": whose, "adapter": adapter}
    words = {name: value for name, value in asked.items() if value is not None}
    words["bucket_width"] = "1h" if hourly else "1d"
    client = Client(url, api_key)
    page: dict[str, Any] = {"next_page": ""}
    rows: list[dict[str, Any]] = []
    while page["next_page"] is not None:
        more = {"page": page["next_page"]} if page["next_page"] else {}
        page = client.call("GET", f"/v1/usage?{urlencode(words | more)}")
        rows += page["data"]
    if not rows:
        out.print("no usage")
        return
    heading = ("from (UTC)", "tenant", "adapter", "version", *_NUMBERS, "byte-hours")
    print_rows([heading, *map(_cells, rows)])


@audit_app.command("verify")
def verify_logs(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Each on its own.")],
) -> None:
    """Checks that no line of an audit log was changed, and none in between is missing."""
    for file in files:
        try:
            out.print(f"{file}: {verify(file)} events, unbroken")
        except JournalInvalid as broken:
            raise Refusal(str(broken)) from None
        except OSError as error:
            raise Refusal(f"{file}: {error.strerror}") from None


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    begin = datetime.fromtimestamp(row["start"], UTC).strftime("%Y-%m-%d %H:%M")
    adapter = row["adapter"] or "(base)"
    numbers = [str(row[number]) for number in _NUMBERS]
    held = human_size(round(row["adapter_byte_seconds"] / 3600))
    return begin, row["tenant"], adapter, (row["digest"] or "-")[:12], *numbers, held

"""`weft config show`: each setting's value and what set it."""

from typing import Annotated, Any

import typer
from pydantic import SecretStr

from weft.server.cli.console import human_size, print_rows
from weft.server.cli.options import is_size, with_settings
from weft.server.settings import Sourced, flag_of

app = typer.Typer(no_args_is_help=True, help="Looks at the settings.")


def show(
    sourced: Sourced,
    *,
    sources: Annotated[bool, typer.Option("--sources", help="Say what set each value.")] = False,
) -> None:
    """Prints the settings that `weft serve` would use with the same flags, variables and file."""
    rows = [
        (flag_of(name), _shown(name, value), sourced.sources[name])
        for name, value in sourced.settings
    ]
    if sources:
        print_rows([("setting", "value", "source"), *rows])
    else:
        print_rows([row[:2] for row in rows])


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "auto" if is_size(name) else "-"
    if isinstance(value, SecretStr):
        return "***"
    if is_size(name):
        return f"{value} ({human_size(value)})"
    if name == "adapter":
        return ", ".join(f"{source.name}={source.path}" for source in value) or "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


app.callback()(lambda: None)  # keeps `show` a command of its own while it is the only one
app.command("show")(with_settings(show))

"""The commands' table, and the one place where a failure becomes a line and an exit code."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from weft.server.cli.adapters import app as adapters_app
from weft.server.cli.config import app as config_app
from weft.server.cli.console import complain, err, out
from weft.server.cli.evaluate import evaluate
from weft.server.cli.inspect import inspect
from weft.server.cli.options import EPILOG, with_settings
from weft.server.cli.records import audit_app, usage
from weft.server.cli.serve import DEMO_SETS, demo, serve
from weft.server.cli.tenants import app as tenants_app
from weft.server.cli.verify import verify
from weft.server.settings import SettingsError

app = typer.Typer(
    name="weft",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table cuts long flags short
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serves one base model with many adapters through the OpenAI API.",
)
app.command("serve", epilog=EPILOG)(with_settings(serve))
app.command("demo", epilog=EPILOG)(with_settings(demo, without=DEMO_SETS))
app.add_typer(adapters_app, name="adapters")
app.add_typer(tenants_app, name="tenants")
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("evaluate")(evaluate)
app.command("usage")(usage)
app.add_typer(audit_app, name="audit")
app.add_typer(config_app, name="config")


@app.callback(invoke_without_command=True)
def weft(
    print_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Serves one base model with many adapters through the OpenAI API."""
    if print_version:
        out.print(f"weft {version('weft')}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits: 0 done, 1 could not, 2 told wrong, 130 interrupted."""
    try:
        code = app(arguments, prog_name="weft", standalone_mode=False)
    except SettingsError as error:
        for line in error.lines:
            complain(line)
        sys.exit(2)
    except typer.TyperException as error:
        message = error.format_message()
        if "\n" in message:  # a command without its subcommand: the message is its help
            err.print(message)
        else:
            complain(message)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code or 0)

"""`weft inspect`: an adapter's card, or why it would be refused."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from weft.adapters.errors import AdapterInvalid
from weft.server.base_folder import BaseNotFound, find_base
from weft.server.cli.console import Refusal, err, human_size, out

Adapter = Annotated[Path, typer.Argument(metavar="PATH", help="The adapter's folder.")]
Base = Annotated[str, typer.Option("--base", help="Base model: a local folder or a hub id.")]


def inspect(adapter: Adapter, base: Base) -> None:
    """Shows what an adapter is and what it would take to serve it; exit code 1 if refused."""
    from weft.server.engine.checks import ModelUnsupported
    from weft.server.inspection import inspect_adapter

    try:
        with err.status(f"{adapter.name}: reading"):
            card = inspect_adapter(adapter, find_base(base), base)
    except AdapterInvalid as refusal:
        raise Refusal(f"{adapter}: refused: {refusal}") from None
    except (BaseNotFound, ModelUnsupported) as refusal:
        raise Refusal(f"--base: {refusal}", 2) from None
    rows = {
        "method": card.method,
        "targets": ", ".join(card.targets),
        "modules": str(card.modules),
        "rank": str(card.rank),
        "alpha": "-" if card.alpha is None else f"{card.alpha:g}",
        "trained values": f"{card.trained:,} ({card.share:.2%} of the base)",
        "on the device": human_size(card.bytes),
        "checks": "\n".join(card.checks),
        "warnings": "\n".join(card.warnings) or "none",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)

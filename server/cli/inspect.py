"""`weft inspect`: an adapter's card, or why it would be refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from weft.adapters.errors import AdapterInvalid
from weft.server.base_folder import BaseNotFound, find_base
from weft.server.cli.console import Refusal, err, human_size, print_fields

Adapter = Annotated[Path, typer.Argument(metavar="PATH", help="The adapter's folder.")]
Base = Annotated[str, typer.Option("--base", help="Base model: a local folder or a hub id.")]


def base_folder(base: str) -> Path:
    """The base model's folder, found before anything slow is imported; raises Refusal."""
    try:
        return find_base(base)
    except BaseNotFound as missing:
        raise Refusal(f"--base: {missing}", 2) from None


def inspect(adapter: Adapter, base: Base) -> None:
    """Shows what an adapter is and what it would take to serve it; exit code 1 if refused."""
    folder = base_folder(base)
    from weft.server.engine.checks import ModelUnsupported
    from weft.server.inspection import inspect_adapter

    try:
        with err.status(f"{adapter.name}: reading"):
            card = inspect_adapter(adapter, folder, base)
    except AdapterInvalid as refusal:
        raise Refusal(f"{adapter}: refused: {refusal}") from None
    except ModelUnsupported as refusal:
        raise Refusal(f"--base: {refusal}", 2) from None
    print_fields(
        {
            "method": card.method,
            "targets": ", ".join(card.targets),
            "modules": str(card.modules),
            "rank": str(card.rank),
            "alpha": "-" if card.alpha is None else f"{card.alpha:g}",
            "trained values": f"{card.trained:,} ({card.share:.2%} of the base)",
            "on the device": human_size(card.bytes),
            "update / weights": _shares(card.delta_norms),
            "checks": "\n".join(card.checks),
            "warnings": "\n".join(card.warnings) or "none",
        }
    )


def _shares(norms: Mapping[str, float]) -> str:
    """How large updates are beside the weights, in few words for many layers."""
    if not norms:
        return "not known"
    largest = max(norms, key=lambda layer: norms[layer])
    mean = sum(norms.values()) / len(norms)
    return f"{mean:.2%} on average, {norms[largest]:.2%} at most ({largest})"

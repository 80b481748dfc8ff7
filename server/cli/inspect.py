"""`weft inspect`: an adapter's card, or why it would be refused."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.adapters.errors import AdapterInvalid
from weft.server.base_folder import BaseNotFound, find_base
from weft.server.cli.console import Refusal, err, human_size, print_fields

if TYPE_CHECKING:
    from weft.server.engine.messages import LoadReport
    from weft.server.inspection import Inspected

_BARS = "▁▂▃▄▅▆▇█"
Adapter = Annotated[Path, typer.Argument(metavar="PATH", help="The adapter's folder.")]
Base = Annotated[str, typer.Option("--base", help="Base model: a local folder or a hub id.")]


def base_folder(base: str) -> Path:
    """The base model's folder, found before anything slow is imported; raises Refusal."""
    try:
        return find_base(base)
    except BaseNotFound as missing:
        raise Refusal(f"--base: {missing}", 2) from None


def inspect(
    adapter: Adapter,
    base: Base,
    quantization: Annotated[
        str, typer.Option(help="How the base is served: none, nf4 or int8.")
    ] = "none",
    canary: Annotated[
        bool,
        typer.Option(
            help="Run base and adapter on a short text. Without it, weights are read only for an "
            "adapter that cannot be understood without them."
        ),
    ] = True,
) -> None:
    """Shows what an adapter is and what it would take to serve it; exit code 1 if refused."""
    folder = base_folder(base)
    # Whoever imports bitsandbytes is told of a package that nothing here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from weft.server.engine.unsupported import ModelUnsupported
    from weft.server.inspection import InspectedOn, inspect_adapter

    doing = "running it beside its base" if canary else "reading"
    try:
        with err.status(f"{adapter.name}: {doing}"):
            found = inspect_adapter(adapter, InspectedOn(folder, base, quantization, canary))
    except AdapterInvalid as refusal:
        raise Refusal(f"{adapter}: refused: {refusal}") from None
    except ModelUnsupported as refusal:
        raise Refusal(f"--base: {refusal}", 2) from None
    print_fields(_fields(found))


def _fields(found: "Inspected") -> dict[str, str]:
    card = found.card
    return {
        "method": card.method,
        "targets": ", ".join(card.targets),
        "modules": str(card.modules),
        "rank": str(card.rank or "-"),
        "alpha": "-" if card.alpha is None else f"{card.alpha:g}",
        "virtual tokens": str(card.virtual_tokens or "-"),
        "trained values": f"{card.trained:,}: {_fraction(card.share)} of the base",
        "on the device": human_size(card.bytes),
        "update / weights": _shares(card.delta_norms),
        "canary": f"not run: {found.not_run}" if found.report is None else _canary(found.report),
        "checks": "\n".join(card.checks),
        "warnings": "\n".join(card.warnings) or "none",
    }


def _fraction(share: float) -> str:
    """A share as people compare them: 1/250 rather than 0.4 %."""
    return f"1/{1 / share:,.0f}" if 0 < share <= 0.5 else f"{share:.0%}"


def _shares(norms: Mapping[str, float]) -> str:
    """How large updates are beside the weights, in few words and a bar for each layer."""
    if not norms:
        return "it changes no weights, or none that could be read"
    largest = max(norms, key=lambda layer: norms[layer])
    mean = sum(norms.values()) / len(norms)
    bars = "".join(_BARS[round(7 * norm / norms[largest])] for norm in norms.values())
    return f"{mean:.2%} on average, {norms[largest]:.2%} at most ({largest})\n{bars}"


def _canary(report: "LoadReport") -> str:
    after = f"after {report.canary_text!r} " if report.canary_text else ""
    return (
        f"{after}logits move by up to {report.canary_difference:.3g}, and "
        f"{report.canary_shift:.1%} of the next token's probability moves to other tokens"
    )

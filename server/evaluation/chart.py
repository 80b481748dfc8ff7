"""An evaluation's result as a picture: each adapter's difference from the base, and how sure it is.

Needs matplotlib, which is imported only here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = {"helps": "tab:green", "harms": "tab:red", "forgets": "tab:red"}


def save_chart(result: Mapping[str, Any], path: Path) -> None:
    """Draws losses' differences, one panel for each kind of examples, into a PNG file."""
    kinds = [kind for kind, count in result["examples"].items() if count]
    adapters = len(result["models"]) - 1
    figure = Figure(figsize=(2 + 4 * len(kinds), 1.5 + 0.4 * adapters), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _draw(axes, result, kind)
    figure.savefig(path, format="png", dpi=150)


def _draw(axes: Axes, result: Mapping[str, Any], kind: str) -> None:
    adapters = [model for model in result["models"] if model[kind]["loss"]["difference"]]
    axes.axvspan(-result["margin"], result["margin"], color="0.9")
    axes.axvline(0, color="0.5", linewidth=1)
    for row, model in enumerate(reversed(adapters)):
        found = model[kind]["loss"]["difference"]
        low, high = found["value"] - found["low"], found["high"] - found["value"]
        # An estimate may lie outside an interval over draws of few examples.
        bars = [[max(low, 0.0)], [max(high, 0.0)]]
        axes.errorbar(
            found["value"], row, xerr=bars, fmt="o", capsize=4, color=_colour(model, kind)
        )
    axes.set_yticks(range(len(adapters)), [model["model"] for model in reversed(adapters)])
    axes.set_title(f"{kind}: {result['examples'][kind]} examples")
    axes.set_xlabel(f"loss beside {result['base']}, nats a token\n(left of 0 is better)")


def _colour(model: Mapping[str, Any], kind: str) -> str:
    verdict = model["verdict"] if kind == "task" else "forgets" if model["forgets"] else None
    return _COLOURS.get(verdict or "", "tab:gray")

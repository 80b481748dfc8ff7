"""The figures of runs, for people: a table, and a picture that needs matplotlib."""

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from serving.figures import Figures, Spread
from serving.request import Outcomes

_COLUMNS = (
    "workload",
    "sent",
    "requests\nfailed",
    "requests/s\ntokens/s",
    "first token, ms\np50 / p90 / p99",
    "between tokens, ms\np50 / p90 / p99",
    "floor\nms",
    "whole answer, ms\np50 / p99",
    "in time\n%",
    "late, ms\np99",
    "cached\n%",
    "at once: rows\nadapters",
)


def table(title: str) -> Table:
    """An empty one; two figures of a cell are named one above the other."""
    made = Table(title=title)
    for number, column in enumerate(_COLUMNS):
        made.add_column(column, justify="right" if number else "left")
    return made


def add_row(made: Table, name: str, sent: str, figures: Figures, floor: float | None) -> None:
    """A run; sent: how; floor: seconds that memory bandwidth allows a step, None if not known."""
    made.add_row(
        name,
        sent,
        f"{figures.requests} / {figures.requests - figures.answered}",
        f"{figures.requests_per_second:.1f} / {figures.tokens_per_second:.0f}",
        _milliseconds(figures.first_token, "p50", "p90", "p99"),
        _milliseconds(figures.inter_token, "p50", "p90", "p99"),
        "–" if floor is None else f"{1e3 * floor:.1f}",
        _milliseconds(figures.whole, "p50", "p99"),
        f"{100 * figures.kept:.0f}",
        _milliseconds(figures.late, "p99"),
        f"{100 * figures.cached:.0f}",
        f"{figures.running:.1f} / {figures.adapters:.1f}",
    )


def remarks(name: str, figures: Figures) -> list[str]:
    """What a reader of a run's figures must know."""
    said = [f"{name}: {count} × {error}" for error, count in figures.errors.items()]
    if figures.short:
        said.append(f"{name}: {figures.short} answers are shorter than asked for")
    if not figures.counted:
        said.append(f"{name}: the server does not say how many tokens a chunk has; spread evenly")
    return said


def save_plot(runs: Mapping[str, Outcomes], path: Path) -> None:
    """Draws the shares of first tokens and of gaps between tokens that took at most so long."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    first, between = figure.subplots(1, 2, sharey=True)
    for number, (name, run) in enumerate(runs.items()):
        style = "-" if number < 10 else "--"
        answered = [outcome for outcome in run.each if outcome.error is None]
        gaps = [gap for outcome in answered for gap in outcome.gaps]
        first.ecdf([one.first_token for one in answered], label=name, linestyle=style)
        between.ecdf(gaps or [0.0], linestyle=style)
    for axes, title in ((first, "first token"), (between, "between tokens")):
        axes.set(title=title, xlabel="seconds", xscale="log")
        axes.grid(alpha=0.3)
    first.set_ylabel("share that took at most so long")
    first.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _milliseconds(spread: Spread | None, *names: str) -> str:
    if spread is None:
        return "–"
    seconds = (getattr(spread, name) for name in names)
    return " / ".join(
        f"{1e3 * value:.0f}" if value > 0.1 else f"{1e3 * value:.1f}" for value in seconds
    )

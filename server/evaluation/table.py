"""An evaluation's result as tables for people. Knows the result's JSON, nothing of its making."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
_SHARES = {"exact_match": "exact match", "regex": "regex", "json": "JSON"}
_FORGETS = {True: "forgets", False: "none seen", None: "-"}


@dataclass(frozen=True)
class Table:
    """A title, and rows of which the first is the heading."""

    title: str
    rows: Sequence[Sequence[str]]


def tables(result: Json) -> Iterator[Table]:
    """The task's table and the general one, where there are such examples."""
    for kind, last in (("task", "verdict"), ("general", "forgetting")):
        if not result["examples"][kind]:
            continue
        models = result["models"]
        shares = [share for share in _SHARES if any(model[kind][share] for model in models)]
        heading = ["model", "loss", "difference", "perplexity", *map(_SHARES.get, shares), last]
        rows = [_row(model, kind, shares) for model in models]
        title = f"{kind}: {result['examples'][kind]} examples"
        yield Table(title, [[cell or "" for cell in heading], *rows])


def explanation(result: Json) -> str:
    """What the numbers mean."""
    percent = f"{result['bootstrap']['confidence']:.0%}"
    return (
        f"Loss in nats a token, with {percent} intervals (paired bootstrap over examples). An "
        f"adapter helps or harms where its difference from {result['base']} has an interval "
        f"without 0 and is at least {result['margin']}."
    )


def markdown(result: Json) -> str:
    """The tables as Markdown."""
    parts = []
    for table in tables(result):
        heading, *rows = table.rows
        lines = [heading, ["---"] * len(heading), *rows]
        written = "\n".join(f"| {' | '.join(_escaped(line))} |" for line in lines)
        parts.append(f"## {table.title.capitalize()}\n\n{written}")
    return "\n\n".join([*parts, explanation(result)]) + "\n"


def harmful(result: Json) -> bool:
    """Whether any adapter harms or forgets."""
    return any(model["verdict"] == "harms" or model["forgets"] for model in result["models"])


def _row(model: Json, kind: str, shares: Sequence[str]) -> list[str]:
    scores = model[kind]
    last = model["verdict"] if kind == "task" else _FORGETS[model["forgets"]]
    return [
        model["model"],
        _interval(scores["loss"], "{:.3f}"),
        _interval(scores["loss"]["difference"], "{:+.3f}"),
        _interval(scores["perplexity"], "{:.4g}"),
        *(_interval(scores[share], "{:.0%}") for share in shares),
        last or "-",
    ]


def _interval(found: Json | None, form: str) -> str:
    if found is None:
        return "-"
    value, low, high = (form.format(found[name]) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]

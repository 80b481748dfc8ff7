"""From runs and what serving found to one row a method, to the claims, and to tables.

Knows figures only; trains and serves nothing.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from finetuning.methods import FULL, METHODS
from finetuning.serving import BASE_MIX, COPIES_MIX, Score, Served
from finetuning.training import Trained

_NEAR = 0.98


@dataclass(frozen=True)
class Spread:
    """The mean of some figures, with the least and the largest of them."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one figure at least."""
        return cls(statistics.fmean(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.mean:.1%} ({self.low:.0%} to {self.high:.0%})"


@dataclass(frozen=True)
class Scored:
    """A run at the chosen learning rate, and what weft made of it."""

    run: Trained
    score: Score
    device_bytes: int


@dataclass(frozen=True)
class Row:
    """What is known of one method.

    fewer: the base's values over the trained ones   fewer_at_7b: the same on Llama-7B's shapes
    seconds, peak_bytes: medians over runs   rates: chosen, by task
    accuracy: by task, over seeds   relative: over that of full fine-tuning of the same task and
        seed; without tasks on which that was not run or has no right answer
    general: over all runs, as are agreeing and checked; see Score
    one, all: tokens a second over those of the base in the same engine; see Served
    """

    method: str
    title: str
    settings: str
    trainable: int
    fewer: float
    fewer_at_7b: float
    checkpoint_bytes: int
    seconds: float
    state_bytes: int
    peak_bytes: float
    rates: Mapping[str, float]
    accuracy: Mapping[str, Spread]
    relative: Mapping[str, Spread]
    general: Spread
    agreeing: int
    checked: int
    device_bytes: int
    one: float
    all: float


def rows(
    scored: Sequence[Scored],
    served: Mapping[str, Served],
    fewer: Mapping[str, tuple[float, float]],
) -> list[Row]:
    """One for each method that was run.

    served: by quantization   fewer: by method, `Row.fewer` and `Row.fewer_at_7b`
    """
    by_method: dict[str, list[Scored]] = {method: [] for method in METHODS}
    for each in scored:
        by_method[each.run.job.method].append(each)
    full = _shares(by_method[FULL])
    return [
        _row(found, full, served[METHODS[method].quantization].speeds, fewer[method])
        for method, found in by_method.items()
        if found
    ]


def _row(
    found: Sequence[Scored],
    full: Mapping[tuple[str, int], float],
    speeds: Mapping[str, float],
    fewer: tuple[float, float],
) -> Row:
    first = found[0].run
    method = first.job.method
    tasks = dict.fromkeys(each.run.job.task for each in found)
    shares = _shares(found)
    ratios = {
        task: [own / full[task, seed] for (of, seed), own in shares.items() if of == task]
        for task in tasks
        if all(full.get(each) for each in shares if each[0] == task)
    }
    return Row(
        method=method,
        title=METHODS[method].title,
        settings=METHODS[method].settings,
        trainable=first.trainable,
        fewer=fewer[0],
        fewer_at_7b=fewer[1],
        checkpoint_bytes=first.checkpoint_bytes,
        seconds=statistics.median(each.run.seconds for each in found),
        state_bytes=first.state_bytes,
        peak_bytes=statistics.median(each.run.peak_bytes for each in found),
        rates={each.run.job.task: each.run.job.rate for each in found},
        accuracy={
            task: Spread.of([share for (of, _), share in shares.items() if of == task])
            for task in tasks
        },
        relative={task: Spread.of(values) for task, values in ratios.items()},
        general=Spread.of([each.score.general for each in found]),
        agreeing=sum(each.score.agreeing for each in found),
        checked=sum(each.score.checked for each in found),
        device_bytes=found[0].device_bytes,
        one=speeds[f"{method}, one"] / speeds[BASE_MIX],
        all=speeds[f"{method}, all"] / speeds[BASE_MIX],
    )


def _shares(found: Sequence[Scored]) -> dict[tuple[str, int], float]:
    """Accuracy by task and seed."""
    return {(each.run.job.task, each.run.job.seed): each.score.task for each in found}


def claims(found: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Each common claim about the methods that were run, and what was found of it."""
    light = [row for row in found if row.method != FULL]
    if light:
        counts = (f"{r.title} {r.fewer:,.0f}x ({r.fewer_at_7b:,.0f}x)" for r in light)
        yield (
            "100 to 1000 times fewer trained values, here (and on 7B shapes)",
            ", ".join(counts),
        )
    for row in light:
        if row.method in ("lora", "qlora") and row.relative:
            verdicts = (
                f"{task}: {'holds' if share.mean >= _NEAR else 'does not hold'}, {share}"
                for task, share in row.relative.items()
            )
            yield f"{row.title} within 1 to 2 % of full fine-tuning", "; ".join(verdicts)
    if any(row.method == "prompt" for row in light):
        lightest = (f"{name}: {min(light, key=figure).title}" for name, figure in _WEIGHTS.items())
        yield "prompt tuning is the lightest", ", ".join(lightest)


_WEIGHTS: Mapping[str, Callable[[Row], float]] = {
    "trained values": lambda row: row.trainable,
    "checkpoint": lambda row: row.checkpoint_bytes,
    "training seconds": lambda row: row.seconds,
    "training memory": lambda row: row.peak_bytes,
    "bytes on the device": lambda row: row.device_bytes,
    "speed of serving": lambda row: -row.one,
}


def tables(found: Sequence[Row], served: Mapping[str, Served]) -> Iterator[Table]:
    """What training takes, what was learnt, and what serving takes."""
    yield _table(
        "training: one thread, medians",
        (
            "trained values",
            "of the base",
            "of 7B shapes",
            "checkpoint",
            "CPU seconds",
            "weights, gradients, optimizer",
            "peak memory",
        ),
        {
            row.title: (
                f"{row.trainable:,}",
                f"1/{row.fewer:,.0f}",
                f"1/{row.fewer_at_7b:,.0f}",
                _size(row.checkpoint_bytes),
                f"{row.seconds:.1f}",
                _size(row.state_bytes),
                _size(row.peak_bytes),
            )
            for row in found
        },
    )
    tasks = list(next(iter(served.values())).base)
    answered = {
        row.title: (
            *(cell for task in tasks for cell in (row.accuracy[task], row.relative.get(task, "-"))),
            row.general,
            f"{row.agreeing} of {row.checked}",
        )
        for row in found
    }
    for quantization, one in served.items():
        shares = [cell for score in one.base.values() for cell in (f"{score.task:.1%}", "-")]
        kept = statistics.fmean(score.general for score in one.base.values())
        answered[_base_name(quantization)] = (*shares, f"{kept:.1%}", "-")
    yield _table(
        "answers of weft that are right in every character: mean (least to most over seeds)",
        (
            *(column for task in tasks for column in (task, "of full fine-tuning")),
            "as the base did",
            "same tokens as the trainer's",
        ),
        answered,
    )
    yield _table(
        "serving: bytes on the device, tokens/s of 32 requests over those of the engine's base",
        ("bytes on the device", "all on one adapter", "all adapters in turn"),
        dict(_costs(found, served)),
    )


def _costs(found: Sequence[Row], served: Mapping[str, Served]) -> Iterator[tuple[str, list[str]]]:
    for row in found:
        yield row.title, [_size(row.device_bytes), f"{row.one:.2f}", f"{row.all:.2f}"]
    plain = served.get("none")
    if plain and COPIES_MIX in plain.speeds:
        speed = plain.speeds[COPIES_MIX] / plain.speeds[BASE_MIX]
        yield "the same as models of their own", [_size(plain.weight_bytes), "1.00", f"{speed:.2f}"]
    for quantization, one in served.items():
        speeds = [one.speeds[BASE_MIX] / plain.speeds[BASE_MIX]] if plain else []
        shown = [f"{speed:.2f} of the base" for speed in speeds] or ["-"]
        yield _base_name(quantization), [_size(one.weight_bytes), *shown, "-"]


def _base_name(quantization: str) -> str:
    return "the base" if quantization == "none" else f"the base in {quantization}"


def _table(title: str, columns: Sequence[str], lines: Mapping[str, Sequence[object]]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in lines.items():
        table.add_row(name, *map(str, cells))
    return table


def _size(count: float) -> str:
    kib = count / 1024
    return f"{kib / 1024:.2f} MiB" if kib >= 100 else f"{kib:.1f} KiB"

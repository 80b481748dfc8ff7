"""`weft evaluate`: whether adapters of a running server help, on a file of held-out examples."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from weft.server.cli.adapters import DEFAULT_URL, ApiKey, Url
from weft.server.cli.client import Client, ServerRefusal
from weft.server.cli.console import Refusal, err, out, print_rows

if TYPE_CHECKING:
    from weft.server.evaluation.data import Data

Json = dict[str, Any]
ROUTE = "/v1/evaluations"
_POLL_SECONDS = 0.2
_EXAMPLE = re.compile(r"examples\[(\d+)\]")


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            help='JSON lines: {"prompt" or "messages", "completion"}, and maybe "general": true, '
            '"regex": "…", "json": true.'
        ),
    ],
    adapters: Annotated[
        list[str],
        typer.Option(
            metavar="NAMES",
            help="Adapters to compare with the base: base,a,b@2; repeatable. With weights it names "
            "several that answer together, as one: a:0.7,b:0.3.",
        ),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the whole result here.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables here.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw the differences here (PNG).")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Compares adapters with the base; exit code 1 if one of them harms or forgets."""
    _check_outputs({"--json": json_file, "--markdown": markdown_file, "--plot": plot_file})
    from weft.server.evaluation.data import Data, DataInvalid
    from weft.server.evaluation.table import explanation, harmful, markdown, tables

    try:
        examples = Data(data)
    except DataInvalid as refusal:
        raise Refusal(str(refusal), 2) from None
    body = {"adapters": _named(adapters), "examples": examples.examples, "seed": seed}
    result = _result(Client(url, api_key), body, examples)
    for table in tables(result):
        out.print(table.title)
        print_rows(table.rows)
        out.print("")
    out.print(explanation(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    if markdown_file is not None:
        markdown_file.write_text(markdown(result))
    if plot_file is not None:
        from weft.server.evaluation.chart import save_chart

        save_chart(result, plot_file)
    raise typer.Exit(1 if harmful(result) else 0)


def _named(options: Sequence[str]) -> list[str]:
    """What to compare: an option with weights is one blend, any other a list of adapters."""
    found: list[str] = []
    for option in options:
        parts = [part.strip() for part in option.split(",") if part.strip()]
        if not any(":" in part for part in parts):
            found += parts
        elif "base" in parts:
            reason = "a blend has no base in it: name the base in an --adapters of its own"
            raise Refusal(f"--adapters {option}: {reason}", 2)
        else:
            found.append(",".join(parts))
    if not found:
        raise Refusal("--adapters: name at least one", 2)
    return found


def _check_outputs(files: dict[str, Path | None]) -> None:
    """Says before the work what would be in the way after it; raises Refusal."""
    for flag, path in files.items():
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise Refusal(f"{flag}: {path} cannot be written: {_why_not(path)}", 2)
    if files["--plot"] is not None and find_spec("matplotlib") is None:
        raise Refusal("--plot: needs matplotlib: pip install 'weft[plots]'", 2)


def _why_not(path: Path) -> str:
    return "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"


def _result(client: Client, body: Json, data: "Data") -> Json:
    """Runs an evaluation on the server and waits for its result; raises Refusal."""
    try:
        evaluation = client.call("POST", ROUTE, body)
    except ServerRefusal as refusal:
        raise Refusal(_located(refusal.param, str(refusal), data)) from None
    route = f"{ROUTE}/{evaluation['id']}"
    try:
        with _bar(evaluation["progress"]["total"]) as bar:
            while evaluation["status"] == "in_progress":
                time.sleep(_POLL_SECONDS)
                evaluation = client.call("GET", route)
                bar.update(bar.task_ids[0], completed=evaluation["progress"]["done"])
    except KeyboardInterrupt:
        client.call("DELETE", route)
        raise
    if evaluation["error"] is not None:
        error = evaluation["error"]
        raise Refusal(_located(error["param"], error["message"], data))
    result: Json = evaluation["result"]
    return result


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        bar.add_task("evaluating", total=total)
        yield bar


def _located(param: str | None, message: str, data: "Data") -> str:
    """The server's words, with the line of the file where they are about an example."""
    match = _EXAMPLE.match(param or "")
    return f"{data.where(int(match[1]))}: {message}" if match else message

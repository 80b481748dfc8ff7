"""Where commands write, and how they end. Knows no command."""

from collections.abc import Mapping, Sequence

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


class Refusal(typer.TyperException):
    """Ends a command with one line; exit code 1: it could not, 2: it was told wrong."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def complain(message: str) -> None:
    """Writes one line to the standard error, whatever the message holds."""
    err.print(f"weft: {' '.join(message.split())}")


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Prints cells in aligned columns, whole, for people and pipes alike.

    A cell of several lines is the last of its row.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for *cells, last in rows:
        first = "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))
        out.print(first + last.replace("\n", f"\n{' ' * len(first)}"))


def print_fields(fields: Mapping[str, str]) -> None:
    """Prints names and values, one pair a row."""
    print_rows(list(fields.items()))


def human_size(nbytes: int) -> str:
    """`1.5 GiB` from bytes."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"

"""Where commands write, and how they end. Knows no command."""

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Refusal(typer.TyperException):
    """Ends a command with one line; exit code 1: it could not, 2: it was told wrong."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def complain(message: str) -> None:
    """Writes one line to the standard error, whatever the message holds."""
    err.print(f"weft: {' '.join(message.split())}", markup=False)


def human_size(nbytes: int) -> str:
    """`1.5 GiB` from bytes."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"

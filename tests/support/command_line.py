"""Runs `weft` in this process, and says how it ended."""

from typing import NamedTuple

import pytest

from weft.server.cli import main


class Ended(NamedTuple):
    """Exit code, and what was written."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of the standard error."""
        return self.err.splitlines()


def run_weft(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """`weft ARGUMENTS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return Ended(int(caught.value.code or 0), *capsys.readouterr())

"""A real `weft serve` or `weft demo` on a free port, as a person would start it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

WEFT = Path(sys.executable).with_name("weft")


class WeftProcess:
    """Started when made; `url` waits until it serves. As a context it is stopped at the end."""

    def __init__(self, *arguments: object, state: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WEFT_")}
        self._process = subprocess.Popen(
            [WEFT, *map(str, arguments), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"XDG_STATE_HOME": str(state), "HF_HUB_OFFLINE": "1"},
        )
        self.block: dict[str, str] = {}

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens, once it has printed that it serves."""
        assert self._process.stdout is not None
        while "URL" not in self.block:
            line = self._process.stdout.readline()
            assert line, f"weft ended instead of serving: {self.ended()}"
            name, _, value = line.strip().partition("  ")
            self.block[name] = value.strip()
        return self.block["URL"]

    def print_more(self, until: str) -> list[str]:
        """The lines printed after the URL, up to the one that holds `until`."""
        assert self.url
        assert self._process.stdout is not None
        lines: list[str] = []
        while until not in "".join(lines):
            lines.append(self._process.stdout.readline().rstrip("\n"))
            assert len(lines) < 100
        return lines

    def wait_for(self, words: str) -> None:
        """Waits until a line of the standard error holds `words`."""
        assert self._process.stderr is not None
        while words not in (line := self._process.stderr.readline()):
            assert line, "weft ended before it said so"

    def interrupt(self) -> None:
        """Sends what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def ended(self) -> tuple[int, str, str]:
        """Waits for the end: exit code, the rest of the standard output, the standard error."""
        out, err = self._process.communicate()
        return self._process.returncode, out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.communicate()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

"""A server as a process group of its own: started, waited for, its processor time, ended."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

START_SECONDS = 600.0
STOP_SECONDS = 30.0


class ServerProcess:
    """Runs a command; what it says goes to a file.

    command: its arguments   environment: variables beside this process's own
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> None:
        with output.open("w") as file:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, url: str) -> bool:
        """Returns once `url` answers 200; False if the server ends before, or takes too long."""
        until = time.monotonic() + START_SECONDS
        while not _answers(url):
            if self._process.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(0.5)
        return True

    def cpu_seconds(self) -> float:
        """Processor time of all living processes of its session."""
        return sum(_ticks(stat) for stat in self._stats()) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ends the whole group, at last by force."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        if self._stats():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _stats(self) -> list[list[str]]:
        """Of /proc/PID/stat of its session's processes, the fields after the command's name."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[3]) == self._process.pid and fields[0] != "Z":
                found.append(fields)
        return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ticks(stat: list[str]) -> int:
    """User and system time, in clock ticks."""
    return int(stat[11]) + int(stat[12])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False

"""Starts an engine: in a process of its own, or (for tests) in a thread behind the same socket."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from weft.server import logs
from weft.server.engine.connection import socket_pair

STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Launched:
    """A running engine: our end of its socket, and how to make sure that it is gone.

    terminate: interrupts one that is not reading commands yet, as far as that is possible
    kill: ends one that does nothing any more, where it is a process
    """

    sock: socket.socket
    end: Callable[[], None]
    pid: int | None = None
    terminate: Callable[[], None] = lambda: None
    kill: Callable[[], None] = lambda: None


def launch_process(log_level: str = "info", to_pack: Sequence[str] = ()) -> Launched:
    """Starts `python -m weft.server.engine.boot` with the far end of a socket pair.

    log_level: from which on it and what it starts log
    to_pack: a base's folder, the device and the dtype, where packing may begin before it is told
    """
    near, far = socket_pair()
    command = [sys.executable, "-P", "-m", "weft.server.engine.boot", str(far.fileno()), *to_pack]
    process = subprocess.Popen(
        command,
        pass_fds=[far.fileno()],
        start_new_session=True,
        env={**os.environ, logs.VARIABLE: log_level},
    )
    far.close()

    def end() -> None:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    return Launched(near, end, process.pid, process.terminate, process.kill)


@contextlib.contextmanager
def launched_ahead(
    log_level: str = "info", to_pack: Sequence[str] = ()
) -> Iterator[Callable[[], Launched]]:
    """Starts an engine now, which imports for seconds; gives what launches engines, that one first.

    One that nobody took is ended.
    """
    ahead = [launch_process(log_level, to_pack)]

    def launch() -> Launched:
        return ahead.pop() if ahead else launch_process(log_level, to_pack)

    try:
        yield launch
    finally:
        for unused in ahead:
            unused.terminate()
            unused.sock.close()
            unused.end()


def launch_thread() -> Launched:
    """Runs the engine in a thread of this process; closing the socket ends it."""
    from weft.server.engine.process import run  # imports torch: only where the engine runs

    near, far = socket_pair()
    thread = threading.Thread(target=run, args=(far,), name="engine", daemon=True)
    thread.start()

    def end() -> None:
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)
        thread.join(STOP_SECONDS)

    return Launched(near, end)

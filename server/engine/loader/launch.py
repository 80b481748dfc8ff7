"""Starts the loader: as a fork of the engine's process before that has threads, or on its own."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from weft.adapters.confinement import end_with_parent, keep_only

_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Loading:
    """A loader: our end of its socket, and how to wait for its end once that is closed."""

    sock: socket.socket
    pid: int
    reap: Callable[[], None]

    def kill(self) -> None:
        """Ends it whatever it does."""
        os.kill(self.pid, signal.SIGKILL)


def launch_process() -> Loading:
    """A new interpreter, which takes seconds to import what it needs."""
    near, far = socket.socketpair()
    command = [sys.executable, "-P", "-m", "weft.server.engine.loader.process", str(far.fileno())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, pass_fds=[far.fileno()], env=environment)
    far.close()

    def reap() -> None:
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    return Loading(near, process.pid, reap)


def fork(forget: Callable[[], None] = lambda: None) -> Loading:
    """A fork of this process, which must have one thread and no device: it shares its memory.

    forget: called there, to give back what it does not need
    """
    near, far = socket.socketpair()
    pid = os.fork()
    if not pid:
        _serve(far, forget)
    far.close()
    return Loading(near, pid, lambda: _reap(pid))


def _serve(sock: socket.socket, forget: Callable[[], None]) -> None:
    from weft.server.engine.loader.process import serve  # imports torch

    code = 1
    try:
        keep_only(sock.fileno())
        end_with_parent()
        forget()
        serve(sock)
        code = 0
    finally:
        os._exit(code)


def _reap(pid: int) -> None:
    end = os.pidfd_open(pid)
    try:
        if not select.select([end], [], [], _STOP_SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(end)
    os.waitpid(pid, 0)

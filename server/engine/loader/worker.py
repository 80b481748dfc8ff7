"""A process that loads versions for one account, one after the other, as long as they take little.

To begin and to end costs such a process several times what most loads cost: pages of its parent
that it writes to are copied, all others are listed for it.
"""

import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from msgspec import Struct

from weft.adapters import confinement
from weft.server.engine.loader import job
from weft.server.engine.loader.channel import Channel
from weft.server.engine.loader.messages import (
    LoaderConfig,
    LoadVersion,
    Lowered,
    Order,
    Refused,
    Told,
)

IDLE = b"."
"""What it says after each load that another may follow."""
_SMALL_PART = 0.1


def run(config: LoaderConfig, sock: socket.socket) -> NoReturn:
    """The forked process, from its beginning to its end; `sock` brings its orders."""
    gc.freeze()  # what its parent made is not looked at: looking would copy it
    code = 1
    try:
        confinement.keep_only(sock.fileno())
        confinement.end_with_parent()
        confinement.limit(config.memory, config.seconds, config.wall_seconds)
        _serve(config, sock)
        code = 0
    except ConnectionError:
        pass  # the engine gave the load up
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve(config: LoaderConfig, sock: socket.socket) -> None:
    """Loads what is ordered; ends where there is no more, or one load more might find too little.

    Limits are those of a process: the next load has nine tenths of them at least.
    """
    orders: Channel[Order] = Channel(sock, Order)
    while True:
        order, file = orders.receive()
        if not isinstance(order, LoadVersion) or file is None:
            return
        confinement.name_process("weft-load")
        _load(order.digest, config, _LoadChannel(socket.socket(fileno=file)))
        if not _took_little(config):
            return
        sock.sendall(IDLE)
        confinement.name_process("weft-idle")


class _LoadChannel(Channel[Told]):
    """The socket of one load. `answered`: the engine was told, or will be now, how it went."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, Told)
        self.answered = threading.Event()

    def send(self, message: Struct, file: int | None = None) -> None:
        if isinstance(message, Lowered | Refused):
            self.answered.set()
        super().send(message, file)


def _load(digest: str, config: LoaderConfig, channel: _LoadChannel) -> None:
    signal.setitimer(signal.ITIMER_REAL, config.wall_seconds)
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    with channel:
        job.run(digest, config, channel)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _end_with(channel: _LoadChannel) -> None:
    """Ends this process once the engine wants no answer any more."""
    with contextlib.suppress(ValueError):  # it is over already
        channel.wait_for_end()
    if not channel.answered.is_set():
        os._exit(0)


def _took_little(config: LoaderConfig) -> bool:
    """Of processor time, and of the memory that it still has."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = resource.getrlimit(resource.RLIMIT_AS)[0] - pages * resource.getpagesize()
    return (
        usage.ru_utime + usage.ru_stime <= _SMALL_PART * config.seconds
        and room >= (1 - _SMALL_PART) * config.memory
    )

"""The loader process: forks processes for loads, hands orders to them, and says how they ended.

It stays as small as it began: one thread, no model, nothing of any upload. So a load begins in
milliseconds, with nothing left over from one of anybody else.
"""

import contextlib
import os
import selectors
import socket
import sys
from dataclasses import dataclass, field
from time import monotonic

from weft.adapters import confinement
from weft.server.engine.loader import worker
from weft.server.engine.loader.channel import Channel
from weft.server.engine.loader.messages import Ended, LoaderConfig, LoadVersion, Order, Told

MOST_IDLE = 4


def serve(sock: socket.socket) -> None:
    """Loads what is asked for until the other end closes. The first message is a LoaderConfig."""
    confinement.name_process("weft-loader")
    confinement.come_last()
    confinement.confine()
    orders: Channel[Order] = Channel(sock, Order)
    config, _ = orders.receive()
    if isinstance(config, LoaderConfig):
        _Workers(config, orders).serve()


@dataclass(eq=False)
class _Worker:
    """A process that loads for one account; empty: one load only.

    end: a descriptor that becomes readable when it ends   sock: to it
    load: on which all about its load under way is said
    """

    account: str
    pid: int
    end: int
    sock: socket.socket
    load: Channel[Told] | None = None


@dataclass
class _Workers:
    """The processes that load, and since when those that could load more have nothing to do."""

    config: LoaderConfig
    orders: Channel[Order]
    alive: set[_Worker] = field(default_factory=set)
    idle: dict[_Worker, float] = field(default_factory=dict)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def serve(self) -> None:
        """Returns when there are no more orders."""
        self.selector.register(self.orders, selectors.EVENT_READ)
        while True:
            events = self.selector.select(self._patience())
            for key, _ in sorted(events, key=lambda event: event[0].data is None):
                one = key.data  # none for orders, which come last: a process may be idle by now
                if one is None:
                    if not self._begin():
                        return
                elif one in self.alive and key.fd == one.end:
                    self._bury(one)
                elif one.sock.fileno() >= 0:
                    self._rest(one)
            while self.idle and self._patience() == 0:
                self._dismiss(next(iter(self.idle)))

    def _patience(self) -> float | None:
        """Seconds until the process that is idle longest has to go."""
        since = next(iter(self.idle.values()), None)
        return None if since is None else max(0.0, since + self.config.idle_seconds - monotonic())

    def _begin(self) -> bool:
        """Gives the next order to a process; returns False where there are no more."""
        order, file = self.orders.receive()
        if not isinstance(order, LoadVersion) or file is None:
            return False
        one = next((w for w in self.idle if w.account == order.account), None)
        if one is None:
            one = self._fork(order)
        self.idle.pop(one, None)
        one.load = Channel(socket.socket(fileno=file), Told)
        with contextlib.suppress(OSError):  # it has ended, and what that means is told by `_bury`
            Channel[Order](one.sock, Order).send(order, file)
        return True

    def _fork(self, order: LoadVersion) -> _Worker:
        near, far = socket.socketpair()
        pid = os.fork()
        if not pid:
            worker.run(self.config, far)
        far.close()
        one = _Worker(order.account, pid, os.pidfd_open(pid), near)
        for file in (one.end, one.sock):
            self.selector.register(file, selectors.EVENT_READ, one)
        self.alive.add(one)
        return one

    def _rest(self, one: _Worker) -> None:
        """A load is over, and its process could do another one; or it closed its end."""
        said = one.sock.recv(1)
        if said and one.load is not None:
            one.load.close()
            one.load = None
            self.idle[one] = monotonic()
        if not said or not one.account:
            self._dismiss(one)
        elif len(self.idle) > MOST_IDLE:
            self._dismiss(next(iter(self.idle)))

    def _dismiss(self, one: _Worker) -> None:
        """Lets a process end, which takes its time."""
        self.idle.pop(one, None)
        self.selector.unregister(one.sock)
        one.sock.close()

    def _bury(self, one: _Worker) -> None:
        """Takes notice of a process that has ended."""
        self.selector.unregister(one.end)
        os.close(one.end)
        if one.sock.fileno() >= 0:
            self._dismiss(one)
        self.alive.discard(one)
        _, status = os.waitpid(one.pid, 0)
        if one.load is None:
            return
        with one.load as channel:
            if status:
                code = os.waitstatus_to_exitcode(status)
                with contextlib.suppress(OSError):  # the engine gave the load up
                    channel.send(Ended(max(-code, 0), max(code, 0)))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # nothing is left to tidy up, and tidying up takes seconds

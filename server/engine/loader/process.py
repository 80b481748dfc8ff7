"""The loader process: forks a process of its own for each load, and says how those ended.

It stays as small as it began: one thread, no model, nothing of any upload. So a load begins in
milliseconds, with nothing left over from another one.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import traceback
from dataclasses import dataclass, field

from weft.adapters import confinement
from weft.server.engine.loader import job
from weft.server.engine.loader.channel import Channel
from weft.server.engine.loader.messages import Ended, LoaderConfig, LoadVersion, Order, Told


def serve(sock: socket.socket) -> None:
    """Loads what is asked for until the other end closes. The first message is a LoaderConfig."""
    confinement.name_process("weft-loader")
    confinement.come_last()
    confinement.confine()
    orders: Channel[Order] = Channel(sock, Order)
    config, _ = orders.receive()
    if isinstance(config, LoaderConfig):
        _Loads(config, orders).serve()


@dataclass
class _Loads:
    """Loads under way, by a descriptor that becomes readable when their process ends."""

    config: LoaderConfig
    orders: Channel[Order]
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def serve(self) -> None:
        self.selector.register(self.orders, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.data is not None:
                    self._finish(key.fd, *key.data)
                elif not self._begin():
                    return

    def _begin(self) -> bool:
        """Forks a process for the next order; returns False where there are no more."""
        order, file = self.orders.receive()
        if not isinstance(order, LoadVersion) or file is None:
            return False
        channel: Channel[Told] = Channel(socket.socket(fileno=file), Told)
        pid = os.fork()
        if not pid:
            _run(order.digest, self.config, channel)
        end = os.pidfd_open(pid)
        self.selector.register(end, selectors.EVENT_READ, (pid, channel))
        return True

    def _finish(self, end: int, pid: int, channel: Channel[Told]) -> None:
        self.selector.unregister(end)
        os.close(end)
        _, status = os.waitpid(pid, 0)
        with channel:
            if status:
                code = os.waitstatus_to_exitcode(status)
                with contextlib.suppress(OSError):  # the engine gave the load up
                    channel.send(Ended(max(-code, 0), max(code, 0)))


def _run(digest: str, config: LoaderConfig, channel: Channel[Told]) -> None:
    """The forked process, from its beginning to its end."""
    code = 1
    try:
        confinement.keep_only(channel.fileno())
        confinement.end_with_parent()
        confinement.name_process("weft-load")
        threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
        confinement.limit(config.memory, config.seconds, config.wall_seconds)
        job.run(digest, config, channel)
        code = 0
    except ConnectionError:
        pass  # the engine gave the load up
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end_with(channel: Channel[Told]) -> None:
    """Ends this process once the engine wants no answer any more."""
    channel.wait_for_end()
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # nothing is left to tidy up, and tidying up takes seconds

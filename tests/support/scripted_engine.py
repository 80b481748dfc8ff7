"""A far end for EngineClient: a thread that answers each command as a test says."""

import contextlib
import socket
import threading
from collections.abc import Callable

from weft.server.engine.connection import EngineConnection, socket_pair
from weft.server.engine.launch import Launched
from weft.server.engine.messages import Command, EngineInfo, Event

INFO = EngineInfo(
    model_digest="ab" * 32,
    device="cpu",
    dtype="float32",
    quantization="none",
    parameters=1,
    weight_bytes=4_000_000,
    vocab_size=512,
    eos_token_ids=(2,),
    max_model_len=64,
    page_size=4,
    pages=16,
    adapter_bytes=0,
    slots=4,
)


class Hangup(Exception):
    """Raised by an answer to end the connection, as a process does that ends.

    last: events that it still sends
    """

    def __init__(self, *last: Event) -> None:
        super().__init__()
        self.last = list(last)


class ScriptedEngine:
    """Counts launches, records commands, and sends what `answer(command)` returns."""

    def __init__(self, answer: Callable[[Command], list[Event]]) -> None:
        self._answer = answer
        self.commands: list[Command] = []
        self.launches = 0
        self.changed = threading.Condition()

    def launch(self) -> Launched:
        self.launches += 1
        near, far = socket_pair()
        threading.Thread(target=self._serve, args=(far,), daemon=True).start()

        def end() -> None:
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

        return Launched(near, end)

    def wait_for(self, kind: type[Command], count: int = 1, timeout: float = 10.0) -> list[Command]:
        """The commands of a kind, once there are `count` of them."""
        with self.changed:
            arrived = self.changed.wait_for(lambda: len(self._of(kind)) >= count, timeout)
        assert arrived, f"expected {count} {kind.__name__}, saw {self.commands}"
        return self._of(kind)

    def _of(self, kind: type[Command]) -> list[Command]:
        return [command for command in self.commands if isinstance(command, kind)]

    def _serve(self, far: socket.socket) -> None:
        connection = EngineConnection(far)
        with contextlib.suppress(OSError):
            try:
                for commands in connection.commands():
                    for command in commands:
                        with self.changed:
                            self.commands.append(command)
                            self.changed.notify_all()
                        connection.send(self._answer(command))
            except Hangup as hangup:
                connection.send(hangup.last)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)
        connection.close()

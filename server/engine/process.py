"""The engine process: reads commands from a socket, steps the engine, writes its events back."""

import contextlib
import logging
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable

from weft.server import garbage, logs
from weft.server.engine.connection import EngineConnection
from weft.server.engine.engine import Engine
from weft.server.engine.loader import launch
from weft.server.engine.loader.launch import Loading
from weft.server.engine.messages import START, Command, EngineConfig, Failed, Progress, Stop
from weft.server.engine.unsupported import ModelUnsupported

log = logging.getLogger("weft.engine")
HEARTBEAT_SECONDS = 1.0
SWITCH_SECONDS = 0.0005
"""How long a thread that reads commands or takes a load in may keep the computing one waiting."""
AWAITED_SECONDS = 0.002
"""Between looks at loads under way, while nothing can be computed."""


def run(
    sock: socket.socket,
    loading: Loading | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serves one API process until it closes the socket or sends Stop.

    The first command is the EngineConfig; the answer is EngineInfo, or Failed with the id START.
    loading: the process that is to load versions; without it a thread does
    on_ready: called once the engine is there, before anybody hears of it
    """
    connection = EngineConnection(sock)
    inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    try:
        engine = _load(inbox.get(), connection, loading)
        if engine is not None:
            on_ready()
            connection.send([engine.info])
            with contextlib.closing(engine):
                _loop(engine, inbox, connection)
    except OSError:
        pass  # the API process is gone, and nobody else can be told
    finally:
        connection.close()


def main() -> None:
    """Serves the API process at the other end of the socket whose number is the first argument."""
    logs.configure()
    sys.setswitchinterval(SWITCH_SECONDS)
    run(socket.socket(fileno=int(sys.argv[1])), launch.fork(), garbage.spare_what_is_there)


def _receive(connection: EngineConnection, inbox: "queue.SimpleQueue[Command]") -> None:
    try:
        for commands in connection.commands():
            for command in commands:
                inbox.put(command)
    except (OSError, ValueError):
        pass  # the socket was closed under the reader: the same as its end
    inbox.put(Stop())


def _load(first: Command, connection: EngineConnection, loading: Loading | None) -> Engine | None:
    if not isinstance(first, EngineConfig):
        return None

    def progress(stage: str, done: int, total: int) -> None:
        connection.send([Progress(stage, done, total)])

    try:
        engine = Engine.load(first, progress, loading)
    except ModelUnsupported as refusal:
        connection.send([Failed(START, "model_unsupported", first.model, str(refusal))])
        return None
    except Exception as error:  # noqa: BLE001 - whatever it is, the API process must hear of it
        traceback.print_exc()
        connection.send([Failed(START, "internal_error", first.model, _one_line(error))])
        return None
    log.debug("ready: %s", engine.info)
    return engine


def _loop(
    engine: Engine, inbox: "queue.SimpleQueue[Command]", connection: EngineConnection
) -> None:
    computed = False
    while True:
        pause = 0.0 if computed else AWAITED_SECONDS if engine.busy else HEARTBEAT_SECONDS
        for command in _drain(inbox, pause):
            if isinstance(command, Stop):
                return
            engine.handle(command)
        computed = engine.step()
        connection.send(engine.take_events())


def _drain(inbox: "queue.SimpleQueue[Command]", pause: float) -> list[Command]:
    """All commands at hand; where there is none, waits `pause` seconds for one."""
    commands: list[Command] = []
    try:
        commands.append(inbox.get(block=pause > 0, timeout=pause))
        while True:
            commands.append(inbox.get_nowait())
    except queue.Empty:
        return commands


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]

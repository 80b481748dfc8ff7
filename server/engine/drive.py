"""Steps an engine of this process until what it was asked is answered; for commands."""

from collections.abc import Sequence

from weft.adapters.errors import AdapterInvalid
from weft.server.engine.engine import Engine
from weft.server.engine.messages import Failed, Generate, Load, Loaded, LoadReport, Tokens


def load(engine: Engine, digest: str) -> LoadReport:
    """Loads a stored version; raises AdapterInvalid."""
    return drive(engine, [Load(f"load-{digest}", digest)])[0]


def drive(engine: Engine, commands: Sequence[Load | Generate]) -> list[LoadReport]:
    """Runs all commands to their ends; returns the reports of the loads.

    Raises AdapterInvalid for the first that fails.
    """
    waiting = {command.id for command in commands}
    reports: list[LoadReport] = []
    for command in commands:
        engine.handle(command)
    while waiting:
        engine.step()
        for event in engine.take_events():
            match event:
                case Failed():
                    raise AdapterInvalid(event.where, event.reason)
                case Tokens(finish="error"):
                    raise AdapterInvalid("adapter", f"ended with {event.error}")
                case Loaded(id=done):
                    waiting.discard(done)
                    reports.append(event.report)
                case Tokens(finish=str(), id=done):
                    waiting.discard(done)
    return reports

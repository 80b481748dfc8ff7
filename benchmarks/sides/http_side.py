"""What servers with OpenAI's API have in common as a side."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serving.client import drive
from serving.request import Outcome, Outcomes, Request
from serving.target import Dialect, Target

from sides.server_process import ServerProcess, free_port
from sides.side import Answers, Missing, Setting


@dataclass(frozen=True)
class Command:
    """arguments: program first   environment: variables beside those of this process."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class HttpSide(ABC):
    """A server in processes of its own that is asked over HTTP.

    ready: the path that answers 200 once it takes requests
    """

    name: str
    ready = "/health"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.base_url = f"http://127.0.0.1:{free_port()}"
        self._process: ServerProcess | None = None

    @abstractmethod
    def version(self) -> str:
        """What is installed; raises Missing."""

    @abstractmethod
    def command(self, port: str) -> Command:
        """How it is started."""

    @abstractmethod
    def dialect(self) -> Dialect:
        """How requests are said to it."""

    def start(self) -> str:
        """Starts the server and waits until it is ready; returns its version. Raises Missing."""
        version = self.version()
        self.setting.scratch.mkdir(parents=True, exist_ok=True)
        command = self.command(self.base_url.rpartition(":")[2])
        output = self.setting.scratch / f"{self.name.replace(' ', '-')}.log"
        self._process = ServerProcess(command.arguments, command.environment, output)
        if not self._process.wait_for(f"{self.base_url}{self.ready}"):
            raise Missing(f"did not start: {output}")
        return version

    def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """The greedy token ids of each answer."""
        outcomes = self._drive(requests).each
        if failed := _failed(outcomes):
            raise RuntimeError(f"{self.name}: {failed}")
        return [outcome.token_ids for outcome in outcomes]

    def answer(self, requests: Sequence[Request]) -> Answers:
        """Sends all at once; each is given up at the deadline."""
        outcomes = self._drive(requests)
        tokens = sum(len(outcome.arrivals) for outcome in outcomes.each)
        return Answers(outcomes.seconds, tokens, _failed(outcomes.each))

    def cpu_seconds(self) -> float:
        """Of the server's processes."""
        return self._process.cpu_seconds() if self._process else 0.0

    def stop(self) -> None:
        """Ends the server."""
        if self._process:
            self._process.stop()

    def _drive(self, requests: Sequence[Request]) -> Outcomes:
        target = Target(self.base_url, self.dialect(), timeout=self.setting.deadline)
        return asyncio.run(drive(target, requests, clients=self.setting.clients))


def _failed(outcomes: Sequence[Outcome]) -> str | None:
    """The errors, and how many answers each ended or left short."""
    reasons = [
        outcome.error or "short"
        for outcome in outcomes
        if outcome.error or len(outcome.arrivals) != outcome.request.max_tokens
    ]
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    return ", ".join(f"{reason}: {count}" for reason, count in counts.items()) or None

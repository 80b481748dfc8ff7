"""One of the servers that are compared: started once, asked many times, stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from serving.request import Request


class Missing(Exception):
    """A side that cannot run here; says what it lacks."""


class NotServed(Exception):
    """Requests that a side has no way to answer; says why."""


@dataclass(frozen=True)
class Setting:
    """What all sides serve, and with what.

    base: folder of the model   adapters: name → folder in peft's layout
    clients: requests at a time   dtype: float32 or bfloat16, in which all compute
    deadline: seconds after which requests are given up
    scratch: a folder for what a side writes, kept from run to run
    """

    base: Path
    adapters: Mapping[str, Path]
    clients: int
    threads: int
    dtype: str
    deadline: float
    scratch: Path

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same as torch names it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@dataclass(frozen=True)
class Answers:
    """What came of requests that were sent at once.

    seconds: until the last answer's end   tokens: of all answers
    failed: why some answers are not whole; None if all are
    """

    seconds: float
    tokens: int
    failed: str | None = None


class Side(Protocol):
    """A server under comparison."""

    name: str

    def start(self) -> str:
        """Starts it with the base and all adapters; returns its version. Raises Missing."""

    def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """The greedy token ids of each answer. Raises NotServed."""

    def answer(self, requests: Sequence[Request]) -> Answers:
        """Sends all at once and waits for their answers. Raises NotServed."""

    def cpu_seconds(self) -> float:
        """Processor time of its own processes so far; 0 if it runs in this one."""

    def stop(self) -> None:
        """Ends it; nothing happens if it does not run."""

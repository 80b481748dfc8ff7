"""What sides that compute in this process have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from serving.request import Request

from sides.side import Answers, Setting


class InProcess(ABC):
    """A library that answers a batch of requests when it is called."""

    name: str

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """The greedy token ids of each answer, all as long as the first is to be."""

    def answer(self, requests: Sequence[Request]) -> Answers:
        """Runs to its end whatever the deadline; that it came late is told."""
        start = time.perf_counter()
        answers = self.tokens(requests)
        seconds = time.perf_counter() - start
        late = "late" if seconds > self.setting.deadline else None
        return Answers(seconds, sum(map(len, answers)), late)

    def cpu_seconds(self) -> float:
        """It has no process of its own, and computes only when it is called."""
        return 0.0

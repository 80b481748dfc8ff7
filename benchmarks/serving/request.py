"""What is asked of a server, and what came of it. Times are seconds after the run's start."""

import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One question.

    prompt: token ids, or text   adapter: its name for clients; None for the base
    max_tokens: how long the answer is to be   at: when to send it; None in a closed loop
    kind: the part of the workload that it belongs to, where figures are wanted for each
    """

    prompt: tuple[int, ...] | str
    adapter: str | None
    max_tokens: int
    at: float | None = None
    kind: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    due: when it was to be sent: latencies count from here, also if the generator came late
    sent, ended: when it was, and when its answer was over   arrivals: of each token
    counted: the server told the tokens of each chunk; else they are spread over the chunks
    token_ids: of the answer, where the server tells them
    prompt_tokens, cached_tokens: by its usage
    error: status and code of an answer that failed, "stream" and the code of one that failed later,
        "connection", "timeout", "unfinished" or "empty"; None for an answer with tokens and an end
    """

    request: Request
    due: float
    sent: float
    ended: float
    arrivals: tuple[float, ...] = ()
    counted: bool = True
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def late(self) -> float:
        """How long after its time the generator sent it."""
        return self.sent - self.due

    @property
    def first_token(self) -> float:
        """Seconds until the first token."""
        return self.arrivals[0] - self.due

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens; 0 between those of one chunk."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]

    @property
    def whole(self) -> float:
        """Seconds until the last token."""
        return self.arrivals[-1] - self.due


@dataclass(frozen=True)
class Outcomes:
    """All requests of one run, in the order in which they were given.

    seconds: from its start to the end of the last answer
    """

    seconds: float
    each: tuple[Outcome, ...]

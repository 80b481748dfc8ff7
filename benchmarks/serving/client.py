"""Sends requests to a server, by the clock or as answers come, and says what became of each.

An open loop sends each request at its time, whatever is still unanswered, and latencies count from
that time: a server that stalls cannot hide the requests that it kept from being sent (coordinated
omission). In a closed loop each of some clients sends its next request when it has an answer.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import orjson

from serving.connections import Pool
from serving.request import Outcome, Outcomes, Request
from serving.stream import AnswerStream
from serving.target import ByLoraField, ByModel, Dialect, PlainOpenAI, Target

__all__ = [
    "ByLoraField",
    "ByModel",
    "Dialect",
    "Outcome",
    "Outcomes",
    "PlainOpenAI",
    "Request",
    "Target",
    "drive",
]
PATH = "/v1/completions"


async def drive(
    target: Target,
    requests: Sequence[Request],
    clients: int | None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcomes:
    """Sends all requests and waits for their answers; no failure of the server ends the run.

    clients: how many wait for their answers before they send again; None: each request has its time
    on_end: told of each outcome as it comes
    """
    with Pool(target.base_url, target.headers) as pool:
        run = _Run(target, pool, on_end)
        if clients is None:
            each = await run.open_loop(requests)
        else:
            each = await run.closed_loop(requests, clients)
        return Outcomes(run.now, tuple(each))


class _Run:
    def __init__(self, target: Target, pool: Pool, on_end: Callable[[Outcome], None]) -> None:
        self._target = target
        self._pool = pool
        self._on_end = on_end
        self._time = asyncio.get_running_loop().time
        self._start = self._time()

    @property
    def now(self) -> float:
        """Seconds after the start."""
        return self._time() - self._start

    async def open_loop(self, requests: Sequence[Request]) -> list[Outcome]:
        """Each at its time."""
        places = sorted(range(len(requests)), key=lambda place: _due(requests[place]))
        tasks: dict[int, asyncio.Task[Outcome]] = {}
        for place in places:
            due = _due(requests[place])
            if (wait := due - self.now) > 0:
                await asyncio.sleep(wait)
            tasks[place] = asyncio.create_task(self._ask(requests[place], due))
        return await asyncio.gather(*(tasks[place] for place in range(len(requests))))

    async def closed_loop(self, requests: Sequence[Request], clients: int) -> list[Outcome]:
        """Each when a client is free, in their order."""
        outcomes: dict[int, Outcome] = {}
        left = iter(enumerate(requests))
        await asyncio.gather(*(self._client(left, outcomes) for _ in range(clients)))
        return [outcomes[place] for place in range(len(requests))]

    async def _client(
        self, left: Iterator[tuple[int, Request]], outcomes: dict[int, Outcome]
    ) -> None:
        for place, request in left:
            outcomes[place] = await self._ask(request, self.now)

    async def _ask(self, request: Request, due: float) -> Outcome:
        body = orjson.dumps(self._target.body(request))
        stream, sent = AnswerStream(), self.now
        try:
            async with asyncio.timeout(self._target.timeout):
                error = stream.error(await self._pool.post(PATH, body, stream.feed))
        except TimeoutError:
            error = "timeout"
        except OSError:
            error = "connection"
        arrivals, counted = stream.arrivals()
        details = stream.usage.get("prompt_tokens_details") or {}
        outcome = Outcome(
            request=request,
            due=due,
            sent=sent,
            ended=self.now,
            arrivals=tuple(when - self._start for when in arrivals),
            counted=counted,
            token_ids=tuple(stream.token_ids),
            prompt_tokens=stream.usage.get("prompt_tokens", 0),
            cached_tokens=details.get("cached_tokens") or 0,
            error=error or (None if arrivals else "empty"),
        )
        self._on_end(outcome)
        return outcome


def _due(request: Request) -> float:
    if request.at is None:
        raise ValueError("a request of an open loop needs its time, `at`")
    return request.at

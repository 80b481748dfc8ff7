"""Two tenants that always ask for more than there is, on an engine that runs by the clock."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from random import Random

import pytest
from soak_results import keep_part
from tiny_models import save_tiny

from weft.adapters.tenancy import TenantContext
from weft.server.engine.connection import HEADER, frame
from weft.server.engine.launch import launch_process
from weft.server.engine.messages import (
    Command,
    EngineConfig,
    EngineInfo,
    Event,
    Generate,
    Sampling,
    Stop,
    Tokens,
    decode_events,
)

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
PLACES = 4
LIGHT = (6, 6)
"""Tokens of a light request's prompt and answer."""
DISTANCES = 10
"""How many times the bound each has been given at the end."""


class Race:
    """What was computed for each tenant, over its weight, as far as it was told.

    computed: tokens of a request, all but the last: that one is told and never computed
    """

    def __init__(self, requests: list[Generate]) -> None:
        self._requests = {request.id: request for request in requests}
        self._begun: set[str] = set()
        self._distances: list[float] = []
        self.computed: defaultdict[str, float] = defaultdict(float)

    def hear(self, events: list[Tokens]) -> None:
        """Counts a step: between two of its events nothing is meant."""
        for event in events:
            request = self._requests[event.id]
            fresh = len(event.tokens)
            if event.id not in self._begun:
                self._begun.add(event.id)
                fresh += len(request.prompt) - 1
            self.computed[request.tenant.id] += fresh / request.tenant.weight
        if len(self.computed) == 2:
            self._distances.append(self.computed["light"] - self.computed["heavy"])

    @property
    def range(self) -> float:
        """How much more the one was given than the other between any two moments."""
        return max(self._distances) - min(self._distances)


def backlog(tenant: TenantContext, prompt: int, answer: int, tokens: float) -> list[Generate]:
    """Requests of so many computed tokens over the tenant's weight; no two prompts are equal."""
    numbers = Random(tenant.id)
    sampling = Sampling(max_tokens=answer, temperature=0.0, ignore_eos=True)
    return [
        Generate(
            id=f"{tenant.id}-{number}",
            tenant=tenant,
            prompt=tuple(numbers.choices(range(10, 90), k=prompt)),
            sampling=sampling,
        )
        for number in range(ceil(tokens * tenant.weight / (prompt + answer - 1)))
    ]


@contextmanager
def told_by_engine(
    config: EngineConfig, commands: list[Command]
) -> Iterator[Iterator[list[Event]]]:
    """What a process of its own tells, step by step, in the order in which it happened."""
    launched = launch_process("error")
    with launched.sock as sock, sock.makefile("rb") as reader:
        sock.sendall(frame([config]))

        def steps() -> Iterator[list[Event]]:
            while True:
                (size,) = HEADER.unpack(reader.read(HEADER.size))
                events = decode_events(reader.read(size))
                yield events
                if any(isinstance(event, EngineInfo) for event in events):
                    sock.sendall(frame(commands))

        try:
            yield steps()
        finally:
            sock.sendall(frame([Stop()]))
            launched.end()


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("heavy", [(40, 2), (4, 24)])
def test_two_backlogged_tenants_differ_by_a_bounded_number_of_tokens(
    tmp_path: Path, weight: float, heavy: tuple[int, int]
) -> None:
    """Whoever is ahead begins nothing while the other one waits; that bounds how far it gets.

    Ahead, a tenant is given only what the at most PLACES requests still need that ran when it was
    not: PLACES x (prompt + answer) tokens over its weight. So far may either be ahead, each in its
    turn, and the distance moves in a range of the sum of both. What is computed of a prompt is told
    with its first token: at either end of the range PLACES prompts of who is behind may be missing.
    All requests are there at the start, so both always wait, and events are counted step by step
    in the engine's order, so no reader's delay is in it.
    """
    weights = {"light": weight, "heavy": 1.0}
    sizes = {"light": LIGHT, "heavy": heavy}
    bound = sum(PLACES * (2 * p + a) / weights[tenant] for tenant, (p, a) in sizes.items())
    requests = [
        backlog(TenantContext(tenant, weights[tenant]), *size, (DISTANCES + 2) * bound)
        for tenant, size in sizes.items()
    ]
    config = EngineConfig(
        model=str(save_tiny("llama", tmp_path / "llama")),
        store=str(tmp_path / "store"),
        dtype="float32",
        device="cpu",
        threads=1,
        max_num_seqs=PLACES,
        max_num_batched_tokens=16,
        prefix_caching=False,
    )
    everything = [request for of_tenant in requests for request in of_tenant]
    race = Race(everything)
    with told_by_engine(config, everything) as steps:
        while len(race.computed) < 2 or min(race.computed.values()) < DISTANCES * bound:
            race.hear([event for event in next(steps) if isinstance(event, Tokens)])
    found = {"tokens_apart_at_most": race.range, "bound": bound, "given": race.computed}
    keep_part("fairness", f"light of weight {weight}, heavy {heavy[0]} + {heavy[1]}", found)
    assert race.range <= bound

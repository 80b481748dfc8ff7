"""Two tenants that always ask for more than there is, on an engine that runs by the clock."""

import asyncio
from collections import defaultdict
from contextlib import aclosing
from pathlib import Path
from random import Random

import pytest
from tiny_models import save_tiny

from weft.adapters.tenancy import TenantContext
from weft.server.engine.client import EngineClient
from weft.server.engine.launch import launch_thread
from weft.server.engine.messages import EngineConfig, Generate, Sampling

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
PLACES, CLIENTS = 4, 24
PROMPT, ANSWER = 6, 6
"""Of the light tenant, in tokens."""
DISTANCES = 5
"""How many times the bound each has been given at the end."""


class Race:
    """What each tenant was given so far, over its weight, and how far they were ever apart."""

    def __init__(self, client: EngineClient, bound: float) -> None:
        self.served: defaultdict[str, float] = defaultdict(float)
        self.worst = 0.0
        self.bound = bound
        self._client = client
        self._numbers = Random(1)

    @property
    def is_over(self) -> bool:
        return len(self.served) == 2 and min(self.served.values()) > DISTANCES * self.bound

    async def backlog(self, tenant: TenantContext, prompt: int, answer: int) -> None:
        """One of a tenant's clients: asks again as soon as it is answered."""
        while not self.is_over:
            tokens = tuple(self._numbers.choices(range(10, 90), k=prompt))
            sampling = Sampling(max_tokens=answer, temperature=0.0, ignore_eos=True)
            name = f"request-{self._numbers.getrandbits(64)}"
            asked = Generate(id=name, tenant=tenant, prompt=tokens, sampling=sampling)
            told = 0
            async with aclosing(self._client.generate(asked)) as events:
                async for event in events:
                    told += len(event.tokens)
                    before = told == len(event.tokens)
                    self._add(tenant, len(event.tokens) + (prompt if before else 0))

    def _add(self, tenant: TenantContext, tokens: int) -> None:
        if self.is_over:
            return  # nobody asks any more: what is left is not of two backlogs
        self.served[tenant.id] += tokens / tenant.weight
        if len(self.served) == 2:
            light, heavy = self.served.values()
            self.worst = max(self.worst, abs(light - heavy))


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize(("prompt", "answer"), [(40, 2), (4, 24)])
async def test_two_backlogged_tenants_differ_by_a_bounded_number_of_tokens(
    tmp_path: Path, weight: float, prompt: int, answer: int
) -> None:
    """As in the simulation, and what is computed of a prompt before its first token is told."""
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
    client = EngineClient(config, launch=launch_thread)
    await client.start()
    try:
        race = Race(client, bound=3 * PLACES * (prompt + answer))
        light, heavy = TenantContext("light", weight), TenantContext("heavy")
        await asyncio.gather(
            *(race.backlog(light, PROMPT, ANSWER) for _ in range(CLIENTS)),
            *(race.backlog(heavy, prompt, answer) for _ in range(CLIENTS)),
        )
    finally:
        await client.close()
    assert race.worst <= race.bound

"""Decode steps of one base in this process: the engine's forward without scheduler and sampling."""

import itertools
import tempfile
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
import workload

from weft.adapters.packed import pack
from weft.adapters.plan import AdapterPlan
from weft.adapters.pool import Pool, SlotRef
from weft.adapters.tenancy import TenantContext
from weft.adapters.traits import PLAIN, Traits
from weft.server.engine.attention import pools_of
from weft.server.engine.messages import EngineConfig, Generate, Sampling
from weft.server.engine.model import ModelHost
from weft.server.engine.sequence import Sequence, Share
from weft.server.engine.step_plan import Scheduled, StepPlan

ROWS = 32
PAGE_SIZE = 16


@dataclass(frozen=True)
class Resident:
    """An adapter in the arena."""

    ref: SlotRef
    traits: Traits


class Decoder:
    """A loaded base, an arena for adapters, and a cache for ROWS sequences of `context` tokens."""

    def __init__(
        self, base: workload.Base, *, context: int, adapter_memory: int, threads: int
    ) -> None:
        self._pages_each = -(-context // PAGE_SIZE)
        self._context = context
        with tempfile.TemporaryDirectory() as store:
            config = EngineConfig(
                model=str(base.folder),
                store=store,
                max_num_seqs=ROWS,
                max_model_len=max(context, 64),
                max_num_batched_tokens=max(ROWS, 64),
                adapter_memory=adapter_memory,
                page_size=PAGE_SIZE,
                threads=threads,
            )
            self.host = ModelHost.load(config, lambda stage, done, total: None)
        self._names = itertools.count()
        self.remove_adapters()
        self._fill_cache()

    @property
    def cache_bytes(self) -> int:
        """Keys and values that one step reads."""
        facts = self.host.facts
        pools = [pool for layer in self._attention() for pool in pools_of(layer)]
        each = sum(pool.nbytes for pool in pools) // (facts.pages * facts.page_size)
        return each * self._context * ROWS

    def remove_adapters(self) -> None:
        """Empties the arena."""
        arena = self.host.arena
        for slot in range(self.host.facts.slots):
            arena.clear(slot)
        self._pool = Pool(arena.values.nbytes, self.host.facts.slots)

    def stored_bytes(self, plan: AdapterPlan) -> int:
        """What an adapter takes of the arena."""
        return plan.nbytes(self.host.arena.values.dtype)

    def add_adapters(self, plan: AdapterPlan, most: int) -> list[Resident]:
        """Up to `most` copies of one adapter, each in memory of its own, as far as they fit."""
        arena = self.host.arena
        arena.check(plan)
        packed = pack(plan, arena.values.dtype, self._pool.align, pin_memory=False)
        residents: list[Resident] = []
        while len(residents) < most and self._pool.used + sum(packed.sizes) <= self._pool.capacity:
            name = f"{plan.digest}-{next(self._names)}"
            placement = self._pool.reserve(name, packed.sizes)
            assert placement is not None
            installation = arena.install(placement, packed)
            while not installation.finish():
                installation.advance(1 << 26)
            self._pool.commit(name)
            residents.append(Resident(self._pool.acquire(name), plan.traits))
        return residents

    def decode(self, adapters: Items[Resident]) -> StepPlan:
        """A step in which each sequence has one token to compute, its adapter taken in turn.

        Empty: all rows are the base's. A prefix lies in pages that its adapter's sequences share.
        """
        rows = [adapters[index % len(adapters)] if adapters else None for index in range(ROWS)]
        rows.sort(key=lambda adapter: adapter.ref.slot if adapter else -1)
        first_of: dict[SlotRef, list[int]] = {}
        items = []
        for index, adapter in enumerate(rows):
            pages = [1 + index * self._pages_each + page for page in range(self._pages_each)]
            if adapter is not None:
                shared = adapter.traits.prefix // PAGE_SIZE
                pages[:shared] = first_of.setdefault(adapter.ref, pages)[:shared]
            items.append(
                Scheduled(self._sequence(adapter, index, pages), self._context - 1, 1, True)
            )
        return StepPlan(tuple(items))

    def seconds(self, plan: StepPlan) -> float:
        """How long one step takes, the making of its tensors included."""
        start = time.perf_counter()
        self.host.run(self.host.build(plan))
        return time.perf_counter() - start

    def _sequence(self, adapter: Resident | None, index: int, pages: list[int]) -> Sequence:
        traits = adapter.traits if adapter else PLAIN
        vocabulary = self.host.facts.vocab_size
        tokens = [(97 * index + at) % vocabulary for at in range(self._context - traits.lead)]
        request = Generate(
            id=f"r{index}",
            tenant=TenantContext("benchmark"),
            prompt=tuple(tokens[:-1]),
            sampling=Sampling(max_tokens=1),
        )
        shares = (Share(adapter.ref),) if adapter else ()
        return Sequence(request, 0, index, tokens, traits=traits, pages=pages, shares=shares)

    def _attention(self) -> list[torch.nn.Module]:
        return [self.host.forward.model.get_submodule(name) for name in self.host.base.attention]

    def _fill_cache(self) -> None:
        """With any values but zeros: what a prompt would have left there."""
        for layer in self._attention():
            for pool in pools_of(layer):
                pool.normal_()

"""One engine in this process, stepped by hand, with random LoRAs made where it asks for them."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import torch
import workload
from families import low_rank
from torch import nn
from transformers.pytorch_utils import Conv1D

from weft.adapters.blend import alone
from weft.adapters.packed import Packed
from weft.adapters.plan import AdapterPlan
from weft.adapters.tenancy import TenantContext
from weft.server.engine.connection import frame
from weft.server.engine.decode_graphs import DecodeGraphs
from weft.server.engine.engine import Engine
from weft.server.engine.messages import Abort, EngineConfig, Generate, Sampling
from weft.server.engine.model import ModelHost
from weft.server.engine.versions import Versions

PAGE_SIZE = 16
CONTEXT = 2 * PAGE_SIZE
"""Cached tokens of each row: whole pages, so that an admitted request has one row to compute."""
_TENANT = TenantContext("benchmark")
_LONG = Sampling(max_tokens=1000, temperature=0.0, ignore_eos=True)


def version(rank: int, number: int) -> str:
    """The name of one of the versions of a rank."""
    return f"{rank}-{number}"


def random_version(versions: Versions, digest: str, *for_whom: object) -> Packed:
    """In place of `Versions.load`, of a name that `version` gave.

    All of a rank have the same values, each in memory of its own on the device.
    """
    return _packed(versions, int(digest.partition("-")[0]))


@cache
def _packed(versions: Versions, rank: int) -> Packed:
    torch.manual_seed(0)
    return versions.pack(AdapterPlan("random", "LORA", low_rank(rank)(versions._base)))


class Stepper:
    """An engine whose steps are taken one by one; at most `rows` sequences at a time.

    A base without weights gets random ones. It is on a GPU where there is one.
    """

    def __init__(
        self,
        base: workload.Base,
        *,
        rows: int,
        adapter_memory: int,
        threads: int,
        compile_: bool = False,
    ) -> None:
        self._ids = itertools.count()
        self._running: list[str] = []
        with tempfile.TemporaryDirectory() as store:
            config = EngineConfig(
                model=str(base.folder),
                load_format="auto" if any(base.folder.glob("*.safetensors")) else "dummy",
                store=store,
                max_num_seqs=rows,
                max_model_len=8 * CONTEXT,
                adapter_memory=adapter_memory,
                adapter_host_memory=1 << 30,
                page_size=PAGE_SIZE,
                threads=threads,
                compile=compile_,
                async_scheduling=False,
            )
            self.host = ModelHost.load(config, lambda stage, done, total: None)
            with patch.object(Versions, "load", random_version):
                self._engine = Engine(self.host, config)

    def warm(self, versions: list[str | None]) -> None:
        """Brings versions to the device, and what their requests have in common to the cache."""
        for digest in versions:
            self.begin([digest])
            while self._engine.busy and not self._decoding:
                self.step()
            self.end()

    def begin(self, versions: list[str | None]) -> None:
        """Sends a request for each entry: the version that answers it, or None for the base."""
        prompt = tuple(range(3, 4 + CONTEXT))
        for digest in versions:
            request = Generate(
                id=f"r{next(self._ids)}",
                tenant=_TENANT,
                prompt=prompt,
                blend=alone(digest),
                sampling=_LONG,
            )
            self._running.append(request.id)
            self._engine.handle(request)

    def step(self) -> float:
        """One step, its events encoded as for the socket; returns its seconds."""
        start = time.perf_counter()
        self._engine.step()
        frame(self._engine.take_events())
        return time.perf_counter() - start

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Steps meanwhile are launched before the tokens of those before them are read."""
        self._engine._is_async = True
        try:
            yield
        finally:
            self._engine._is_async = False
            self.step()

    def end(self) -> None:
        """Ends what was begun."""
        for id_ in self._running:
            self._engine.handle(Abort(id_))
        self._running.clear()
        self.step()

    @property
    def adapter_bytes(self) -> int:
        """What the versions on the device take there."""
        return sum(state.bytes for state in self._engine.residency.states())

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The model's modules meanwhile are transformers' own, as if there were no adapters."""
        modules = list(self.host.forward.model.modules())
        replaced = [(m, m.__dict__.pop("forward")) for m in modules if "forward" in m.__dict__]
        try:
            yield
        finally:
            for module, forward in replaced:
                module.__dict__["forward"] = forward

    @property
    def replays(self) -> bool:
        """Whether decode steps are replayed as CUDA graphs."""
        return self.host.decodes is not None

    @contextmanager
    def launched(self) -> Iterator[None]:
        """The model's forward launches each step meanwhile, also where it could be replayed."""
        with patch.object(DecodeGraphs, "run", lambda graphs, batch: graphs.forward.run(batch)):
            yield

    @torch.inference_mode()
    def products(self, rows: int) -> float:
        """Seconds of the step's matrix products alone, one after another, weights out of memory."""
        layers = [
            module
            for module in self.host.forward.model.modules()
            if isinstance(module, nn.Linear | Conv1D)
        ]
        facts = self.host.facts
        inputs = {
            width: torch.randn(1, rows, width, dtype=facts.dtype, device=facts.device)
            for width in {self._width(layer) for layer in layers}
        }
        start = time.perf_counter()
        for layer in layers:
            y = layer(inputs[self._width(layer)])
        y[..., 0].sum().item()  # a GPU has computed all of them when it has this
        return time.perf_counter() - start

    @property
    def _decoding(self) -> bool:
        return self._engine.scheduler.running == len(self._running)

    @staticmethod
    def _width(layer: nn.Linear | Conv1D) -> int:
        return layer.in_features if isinstance(layer, nn.Linear) else layer.nx

"""The server under load: one that runs already, or one that is started with random adapters."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import machine
import torch
import workload

from serving.discovery import discover
from serving.figures import at_once
from serving.request import Outcomes
from serving.suite import MOST_ADAPTERS, RANKS, Names
from serving.target import ByModel, Target
from serving.weft_server import weft_server

BASES = {"embedded": workload.embedded, "half-billion": workload.qwen_half_billion}
MIXED, COLD = 200, 100


@dataclass(frozen=True)
class Floor:
    """What the memory of our own machine allows.

    base: bytes of the base that a step reads   sizes: bytes of each adapter, by name
    bandwidth: bytes a second
    """

    base: int
    sizes: Mapping[str, int]
    bandwidth: float

    def step(self, outcomes: Outcomes) -> float:
        """Seconds in which a step can read the base and the adapters that were under way then."""
        _, adapters = at_once(outcomes.each, self.sizes.__getitem__)
        return (self.base + adapters) / self.bandwidth


@dataclass(frozen=True)
class Served:
    """floor: of a server that was started here; None of any other"""

    target: Target
    names: Names
    floor: Floor | None = None


def running(url: str, dialect: str, headers: Mapping[str, str]) -> Served:
    """A server that runs already; raises OSError where it does not answer."""
    spoken, names = discover(url.rstrip("/"), dialect, headers)
    return Served(Target(url.rstrip("/"), spoken, headers), Names.split(names))


@contextmanager
def started(model: str, adapter_memory: str, threads: int) -> Iterator[Served]:
    """Our own server of a base with all adapters that the suite asks for."""
    base = BASES[model]()
    adapters = _adapters(base)
    named = {kind: [one.name for one in adapters if one.kind == kind] for kind in _KINDS}
    folders = {one.name: one.folder for one in adapters}
    bandwidth = machine.read_bandwidth(torch.device("cpu"))
    flags = ("--adapter-memory", adapter_memory, "--threads", threads)
    with weft_server(base.folder, folders, *flags) as server:
        each = 2 if server.dtype in ("bfloat16", "float16") else 4
        one_rank = workload.adapter_bytes(base, 1, bytes_each=4)  # an arena on a CPU is float32
        sizes = {one.name: one.rank * one_rank for one in adapters}
        floor = Floor(base.read_bytes(each), sizes, bandwidth)
        yield Served(Target(server.url, ByModel(server.model)), Names(**named), floor)


_KINDS = ("same", "mixed", "cold")


@dataclass(frozen=True)
class _Adapter:
    kind: str
    number: int
    rank: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:04}"


def _adapters(base: workload.Base) -> list[_Adapter]:
    """All of the suite's, written where they are not there yet; no two have the same bytes."""
    kinds = {"same": (RANKS[:1], MOST_ADAPTERS), "cold": (RANKS[:1], COLD), "mixed": (RANKS, MIXED)}
    ranks = [
        (kind, number, ranks[number % len(ranks)])
        for kind, (ranks, count) in kinds.items()
        for number in range(count)
    ]
    counts = Counter(rank for *_, rank in ranks)
    left = {
        rank: iter(workload.random_adapters(base, count, rank)) for rank, count in counts.items()
    }
    return [_Adapter(kind, number, rank, next(left[rank])) for kind, number, rank in ranks]

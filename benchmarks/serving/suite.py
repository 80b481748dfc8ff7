"""The workloads by name, as they are run when nothing else is said."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from serving.request import Request
from serving.workloads import (
    COLD,
    POPULARITIES,
    Load,
    cold_stream,
    punica,
    s_lora,
    shared_prefix,
)

CLIENTS = 32
WARM_ADAPTERS = 8
COLD_EVERY = 0.5
PREFIX = 128
RANKS = (8, 16, 32, 64)
MOST_ADAPTERS = 2000


@dataclass(frozen=True)
class Names:
    """Adapters' names: of rank 8, of ranks 8 to 64, and some that nobody asked for yet."""

    same: Sequence[str]
    mixed: Sequence[str]
    cold: Sequence[str]

    @classmethod
    def split(cls, names: Sequence[str]) -> "Names":
        """All of a server's whose adapters' ranks are not known; the last half of them is cold."""
        return cls(names, names, names[len(names) // 2 :])


@dataclass(frozen=True)
class Workload:
    """make: its requests   clients: of a closed loop; None where requests have times"""

    make: Callable[[Load, Names], list[Request]]
    clients: int | None = None

    def warm_up(self, load: Load, names: Names, count: int) -> list[Request]:
        """Other requests of the same kind, to be sent before; no cold adapter is among them."""
        other = replace(load, seed=load.seed + 1)
        return [request for request in self.make(other, names) if request.kind != COLD][:count]


def _s_lora(load: Load, names: Names, adapters: int) -> list[Request]:
    return s_lora(load, names.same[:adapters])


def _punica(load: Load, names: Names, popularity: str) -> list[Request]:
    adapters = names.same[: 2 * CLIENTS] if popularity == "distinct" else names.same
    return punica(load, adapters, popularity)


def _prefix(load: Load, names: Names, shared: bool) -> list[Request]:
    return shared_prefix(load, names.same[:WARM_ADAPTERS], PREFIX, shared=shared)


WORKLOADS: dict[str, Workload] = {
    "s-lora 5": Workload(partial(_s_lora, adapters=5)),
    "s-lora 200": Workload(partial(_s_lora, adapters=200)),
    "s-lora 2000": Workload(partial(_s_lora, adapters=MOST_ADAPTERS)),
    "s-lora 200, ranks 8 to 64": Workload(lambda load, names: s_lora(load, names.mixed[:200])),
    **{
        f"punica {popularity}": Workload(partial(_punica, popularity=popularity), CLIENTS)
        for popularity in POPULARITIES
    },
    "cold": Workload(
        lambda load, names: cold_stream(load, names.same[:WARM_ADAPTERS], names.cold, COLD_EVERY)
    ),
    "prefix": Workload(partial(_prefix, shared=True)),
    "prefix, not shared": Workload(partial(_prefix, shared=False)),
}

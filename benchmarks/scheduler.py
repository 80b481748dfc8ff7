"""What does scheduling cost a step? CPU time of `plan` and `commit`, decoding, by size and queue.

    python benchmarks/scheduler.py

Prints a table; needs no model and no device.
"""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

from weft.adapters.blend import alone
from weft.adapters.pool import Pool, SlotRef
from weft.adapters.presence import Presence
from weft.adapters.tenancy import TenantContext
from weft.adapters.traits import PLAIN, Traits
from weft.server.engine.limits import Limits
from weft.server.engine.messages import Generate, Sampling
from weft.server.engine.prefix_cache import PrefixRoot
from weft.server.engine.scheduler import Scheduler

STEPS = 400
PROMPT_TOKENS = 100


@dataclass(frozen=True)
class Case:
    """How many sequences decode, whose they are, and how many wait."""

    running: int
    tenants: int
    adapters: int
    queued: int


CASES = (
    Case(1, 1, 0, 0),
    Case(64, 1, 0, 0),
    Case(64, 16, 32, 0),
    Case(64, 16, 32, 2000),
    Case(64, 500, 32, 2000),
    Case(256, 64, 60, 5000),
)


class Resident:
    """A residency in which every version has been all along."""

    def __init__(self, digests: list[str]) -> None:
        self._pool = Pool(len(digests), len(digests), align=1)
        for digest in digests:
            self._pool.reserve(digest, [1])
            self._pool.commit(digest)

    def ensure(self, digest: str) -> Presence:
        """Always here."""
        return Presence.DEVICE

    def error(self, digest: str) -> Exception:
        """Nothing fails."""
        raise LookupError(digest)

    def acquire(self, digest: str) -> SlotRef:
        """References its slot."""
        return self._pool.acquire(digest)

    def traits(self, ref: SlotRef) -> Traits:
        """Of a LoRA."""
        return PLAIN

    def release(self, ref: SlotRef) -> None:
        """Gives the reference back."""
        self._pool.release(ref)

    def victims_for(self, digest: str, last: Collection[str] = ()) -> tuple[str, ...]:
        """Nobody has to go."""
        return ()

    def return_seconds(self, digests: Iterable[str]) -> float:
        """Nobody goes."""
        return 0.0


def measure(case: Case) -> tuple[list[float], list[float]]:
    """CPU seconds of each decode step's `plan` and `commit`."""
    digests = [f"adapter-{number}" for number in range(case.adapters)]
    limits = Limits(
        num_pages=1 + case.running * 64,
        page_size=16,
        max_num_seqs=case.running,
        max_num_batched_tokens=4096,
        max_model_len=4096,
    )
    scheduler = Scheduler(limits, Resident(digests), PrefixRoot(b"secret", "base", "bfloat16"))
    for number in range(case.running + case.queued):
        scheduler.add(
            Generate(
                id=str(number),
                tenant=TenantContext(f"tenant-{number % case.tenants}"),
                prompt=tuple(range(number, number + PROMPT_TOKENS)),
                sampling=Sampling(max_tokens=900),
                blend=alone(digests[number % case.adapters] if digests else None),
            )
        )
    plans: list[float] = []
    commits: list[float] = []
    while len(plans) < STEPS:
        began = time.thread_time()
        scheduler.make_way()
        plan = scheduler.plan()
        planned = time.thread_time()
        tokens = [[1]] * len(plan.sampling)
        sampled = time.thread_time()
        scheduler.commit(plan, tokens)
        if plan.rows == case.running:
            plans.append(planned - began)
            commits.append(time.thread_time() - sampled)
    return plans, commits


def main() -> None:
    """Measures all cases."""
    table = Table(
        "running", "tenants", "adapters", "queued", "plan µs", "commit µs", "99 % of both"
    )
    for case in CASES:
        plans, commits = measure(case)
        both = [plan + commit for plan, commit in zip(plans, commits, strict=True)]
        figures = median(plans), median(commits), quantiles(both, n=100)[-1]
        sizes = case.running, case.tenants, case.adapters, case.queued
        table.add_row(*map(str, sizes), *(f"{figure * 1e6:.0f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()

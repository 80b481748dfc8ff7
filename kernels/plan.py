"""Launch plans: the block sizes of Triton kernels, by GPU and class of problem. Knows no kernel.

Tables are files in `plans/`: one for each GPU that was measured (`make tune` writes it), and one
for each generation, by compute capability, for those that were not.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

FOLDER = Path(__file__).parent / "plans"
UNKNOWN_GPU = 90
"""The capability that stands in where kernels are interpreted, without a GPU."""


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Plan = TypeVar("Plan", bound=_Dataclass)


@dataclass(frozen=True, eq=False)
class PlanTable:
    """The plans of one GPU: `plans[kernel][problem]` names sizes.

    measured: on what and when; None for a table that no measurement has seen
    """

    name: str
    measured: Mapping[str, str] | None
    plans: Mapping[str, Mapping[str, Mapping[str, int]]]

    def plan(self, kernel: str, problem: str, kind: type[Plan]) -> Plan:
        """What `kernel` uses for this class of problem; ValueError where that is no `kind`."""
        sizes = self.plans.get(kernel, {}).get(problem)
        names = {field.name for field in fields(kind)}
        if sizes is None or sizes.keys() != names:
            found = "no plan" if sizes is None else f"{sorted(sizes)}"
            raise ValueError(
                f"plan table {self.name}: {kernel}, {problem}: {found}, wanted {sorted(names)}"
            )
        return kind(**sizes)

    @classmethod
    def read(cls, path: Path) -> "PlanTable":
        """The table in a file that `written` made or a hand wrote."""
        content = json.loads(path.read_text())
        return cls(path.stem, content["measured"], content["plans"])

    def written(self) -> str:
        """The content of the table's file."""
        return json.dumps({"measured": self.measured, "plans": self.plans}, indent=2) + "\n"


_forced: ContextVar[PlanTable | None] = ContextVar("plan_table", default=None)


@contextmanager
def using(table: PlanTable) -> Iterator[None]:
    """Kernels that are launched meanwhile, in this thread, take their plans from `table`."""
    token = _forced.set(table)
    try:
        yield
    finally:
        _forced.reset(token)


def plan_of(kernel: str, problem: str, kind: type[Plan], device: torch.device) -> Plan:
    """The plan of `kernel` for this class of problem on this device; see `PlanTable.plan`."""
    plan: Plan = _plan(_forced.get() or table_of(device), kernel, problem, kind)
    return plan


@cache
def _plan(table: PlanTable, kernel: str, problem: str, kind: type[Plan]) -> Plan:
    return table.plan(kernel, problem, kind)


@cache
def table_of(device: torch.device) -> PlanTable:
    """The table of this GPU if it was measured, else of its generation or the last one before."""
    if device.type != "cuda":
        return generation(UNKNOWN_GPU)
    own = FOLDER / f"{file_name(torch.cuda.get_device_name(device))}.json"
    major, minor = torch.cuda.get_device_capability(device)
    return PlanTable.read(own) if own.exists() else generation(10 * major + minor)


def generation(capability: int) -> PlanTable:
    """The unmeasured table for a compute capability (90 = 9.0), or for the last one before it."""
    known = sorted(int(path.stem.removeprefix("sm_")) for path in FOLDER.glob("sm_*.json"))
    chosen = max((number for number in known if number <= capability), default=known[0])
    return PlanTable.read(FOLDER / f"sm_{chosen}.json")


def file_name(gpu: str) -> str:
    """What the table of a GPU of this name is called: lower case, words joined by hyphens."""
    return "-".join(gpu.lower().split())

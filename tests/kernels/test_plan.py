"""Launch plans: which table a GPU gets, and that every shipped one has what the kernels ask for."""

from pathlib import Path

import pytest
import torch

from weft.kernels import plan
from weft.kernels.attention.triton_decode import DecodePlan
from weft.kernels.attention.triton_prefill import PrefillPlan
from weft.kernels.attention.triton_write import WritePlan
from weft.kernels.low_rank.triton import LowRankPlan
from weft.kernels.plan import FOLDER, PlanTable, generation, plan_of, table_of, using

TABLES = sorted(FOLDER.glob("*.json"))
KINDS = {
    "low_rank": LowRankPlan,
    "attention_decode": DecodePlan,
    "attention_prefill": PrefillPlan,
    "cache_write": WritePlan,
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_table_has_a_plan_for_each_class_of_problem(path: Path) -> None:
    table = PlanTable.read(path)
    assert table.plans.keys() == KINDS.keys()
    for kernel, problems in table.plans.items():
        assert problems.keys() == generation(90).plans[kernel].keys()
        for problem in problems:
            assert table.plan(kernel, problem, KINDS[kernel])
    assert table.written() == path.read_text()


@pytest.mark.parametrize(
    ("capability", "name"),
    [(75, "sm_80"), (80, "sm_80"), (89, "sm_80"), (90, "sm_90"), (103, "sm_100"), (120, "sm_100")],
)
def test_an_unmeasured_gpu_takes_the_table_of_its_generation(capability: int, name: str) -> None:
    table = generation(capability)
    assert table.name == name
    assert table.measured is None


def test_a_measured_gpu_takes_its_own_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in FOLDER.glob("sm_*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    own = PlanTable("nvidia-h200", {"gpu": "NVIDIA H200"}, generation(90).plans)
    (tmp_path / "nvidia-h200.json").write_text(own.written())
    monkeypatch.setattr(plan, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    names = iter(["NVIDIA H200", "NVIDIA H100 PCIe"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))
    table_of.cache_clear()
    tables = [table_of(torch.device("cuda", index)) for index in range(2)]
    table_of.cache_clear()
    assert [table.name for table in tables] == ["nvidia-h200", "sm_90"]
    assert tables[0].measured == {"gpu": "NVIDIA H200"}


def test_a_forced_table_holds_inside_its_block_only() -> None:
    shipped = plan_of("cache_write", "any", WritePlan, CPU)
    forced = PlanTable("forced", None, {"cache_write": {"any": {"heads": 1, "warps": 1}}})
    with using(forced):
        assert plan_of("cache_write", "any", WritePlan, CPU) == WritePlan(heads=1, warps=1)
    assert plan_of("cache_write", "any", WritePlan, CPU) == shipped != WritePlan(1, 1)


@pytest.mark.parametrize(
    ("plans", "found"),
    [
        ({}, "no plan"),
        ({"cache_write": {"all": {}}}, "no plan"),
        ({"cache_write": {"any": {"heads": 1, "wraps": 1}}}, r"\['heads', 'wraps'\]"),
    ],
)
def test_a_table_that_does_not_fit_a_kernel_is_named(
    plans: dict[str, dict[str, dict[str, int]]], found: str
) -> None:
    table = PlanTable("odd", None, plans)
    with pytest.raises(ValueError, match=f"plan table odd: cache_write, any: {found}, wanted"):
        table.plan("cache_write", "any", WritePlan)

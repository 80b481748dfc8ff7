"""Tuning without a GPU: the search, what it writes, and that it says what is missing."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import tune
from tuning_problems import tuned

from weft.kernels.plan import PlanTable, generation


def test_the_search_varies_one_size_after_the_other_and_passes_over_what_fails() -> None:
    asked: list[Mapping[str, int]] = []

    def cost(sizes: Mapping[str, int]) -> float:
        asked.append(sizes)
        if sizes["a"] == 4:
            return float("inf")
        return abs(sizes["a"] - 3) + abs(sizes["b"] - 5) + 1

    best, least = tune.descend({"a": 1, "b": 1}, {"a": (1, 2, 3, 4), "b": (1, 5, 9)}, cost)
    assert (best, least) == ({"a": 3, "b": 5}, 1)
    assert len(asked) == 6
    assert len({tuple(sizes.items()) for sizes in asked}) == len(asked)


def test_a_gain_that_may_be_noise_changes_nothing() -> None:
    def cost(sizes: Mapping[str, int]) -> float:
        return 1 - 0.01 * sizes["a"]

    assert tune.descend({"a": 0}, {"a": (0, 1)}, cost) == ({"a": 0}, 1.0)
    assert tune.descend({"a": 0}, {"a": (0, 5)}, cost) == ({"a": 5}, 0.95)


def test_every_size_of_a_plan_can_be_tuned() -> None:
    for kernel, problems in generation(90).plans.items():
        for sizes in problems.values():
            assert tune.OPTIONS[kernel].keys() == sizes.keys()


def test_a_table_names_all_classes_that_were_ever_measured() -> None:
    table = generation(90)
    first = tune.measured(table, "A GPU", ["low_rank: short"])
    assert first["gpu"] == "A GPU"
    assert first["classes"] == "low_rank: short"
    again = tune.measured(PlanTable("a-gpu", first, table.plans), "A GPU", ["cache_write: any"])
    assert again["classes"] == "cache_write: any; low_rank: short"


def test_a_wrong_plan_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise AssertionError

    problem = tuned("cache_write", "any", torch.device("cpu"))
    trial = tune.Trial(
        generation(90), "cache_write", "any", tune.Tuned(problem.cases, wrong), torch.device("cpu")
    )
    with pytest.raises(SystemExit, match="cache_write, any: the plan in use does not work"):
        trial.best()


def test_without_a_gpu_it_says_so_and_fails() -> None:
    script = Path(tune.__file__)
    run = subprocess.run(
        [sys.executable, str(script)],
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr == "tune: torch finds no CUDA device, so there is nothing to measure\n"

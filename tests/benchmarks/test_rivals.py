"""What the comparison of servers makes of its cells: figures, ratios, a table that names gaps."""

from dataclasses import replace
from pathlib import Path

import pytest
import rivals
from rich.console import Console
from sides.contest import Cell, Entry
from sides.llama_server import LlamaServer
from sides.side import Answers, Missing, Setting
from sides.vllm_server import VllmServer
from sides.weft_server import WeftServer

FLOORS = {"base": 400.0, "1 adapter": 390.0, "32 adapters": 250.0}


def cell(*seconds: float, failed: str | None = None) -> Cell:
    return Cell([Answers(each, 1024, failed) for each in seconds], agrees=0.875)


def entry(side: str, *cells: Cell) -> Entry:
    return Entry(side, version="1", cells=dict(zip(FLOORS, cells, strict=True)))


ENTRIES = [
    entry("peft groups", cell(20.48), cell(20.48), cell(102.4)),
    entry("transformers CB", cell(16), cell(16), Cell(not_served="one adapter, merged")),
    Entry("vLLM CPU", missing="no environment given (--vllm)"),
    entry("llama.cpp", cell(8, 4, 16), cell(16), cell(120, failed="timeout: 32")),
    entry("weft", cell(4), cell(4), cell(8)),
]


def test_ratios_are_of_whole_cells_only() -> None:
    assert rivals.ratios(ENTRIES) == {
        "base": {"peft groups": 5.12, "transformers CB": 4.0, "llama.cpp": 2.0},
        "1 adapter": {"peft groups": 5.12, "transformers CB": 4.0, "llama.cpp": 4.0},
        "32 adapters": {"peft groups": 12.8},
    }


def test_the_table_says_what_is_missing_and_what_did_not_finish() -> None:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(rivals.table_of(ENTRIES, FLOORS))
    text = captured.get()
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert lines["vLLM CPU"].count("missing") == 3
    assert "– (one adapter, merged)" in lines["transformers CB"]
    assert "128 (64–256); 88 %" in lines["llama.cpp"]
    assert "did not finish (timeout: 32)" in lines["llama.cpp"]
    assert "400" in lines["the floor allows"]


def test_goals_are_against_the_best_other_server() -> None:
    assert rivals.goals_of(ENTRIES) == [
        "base: weft is 2.00x llama.cpp (goal 1.1x)",
        "1 adapter: weft is 4.00x transformers CB (goal 1.8x)",
        "32 adapters: weft is 12.8x peft groups (goal 10x)",
    ]


def test_results_keep_every_run_and_every_reason() -> None:
    described = {each["side"]: each for each in map(rivals.described, ENTRIES)}
    assert described["vLLM CPU"]["missing"] == "no environment given (--vllm)"
    mixes = described["llama.cpp"]["mixes"]
    assert mixes["base"] == {
        "tokens_per_second": 128.0,
        "runs": [128.0, 256.0, 64.0],
        "failed": None,
        "agrees": 0.875,
    }
    assert mixes["32 adapters"]["tokens_per_second"] is None
    assert mixes["32 adapters"]["failed"] == "timeout: 32"
    assert described["transformers CB"]["mixes"]["32 adapters"]["not_served"]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(
        tmp_path, {}, clients=1, threads=1, dtype="float32", deadline=1.0, scratch=tmp_path
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_sides_are_asked_for_the_same_dtype(setting: Setting, dtype: str) -> None:
    setting = replace(setting, dtype=dtype)
    sides = VllmServer(setting, Path("python")), WeftServer(setting)
    for arguments in (side.command("1").arguments for side in sides):
        assert arguments[arguments.index("--dtype") + 1] == dtype
    assert str(setting.torch_dtype) == f"torch.{dtype}"


def test_results_of_each_dtype_have_a_file() -> None:
    assert [rivals.file_of(dtype) for dtype in ("bfloat16", "float32")] == [
        "rivals",
        "rivals-float32",
    ]


def test_a_rival_without_its_environment_is_missing(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="--vllm"):
        VllmServer(setting, None).start()
    with pytest.raises(Missing, match="does not exist"):
        VllmServer(setting, tmp_path / "python").start()


def test_a_server_that_is_not_on_the_path_is_missing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="PATH"):
        LlamaServer(setting).start()


def test_a_server_that_does_not_start_is_missing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 0.32.0+cpu torch 2.13.0\n")
    (tmp_path / "vllm").write_text("#!/bin/sh\necho no model; exit 1\n")
    for path in (program, tmp_path / "vllm"):
        path.chmod(0o755)
    side = VllmServer(setting, program)
    with pytest.raises(Missing, match="did not start"):
        side.start()
    assert (tmp_path / "vLLM-CPU.log").read_text() == "no model\n"
    side.stop()

"""`weft evaluate` on the embedded model: adapters that help, harm, forget, and do nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapter_files import edit_tensors
from command_line import run_weft
from real_server import real_server

from weft.server.demo import ADAPTERS, BASE
from weft.server.demo.corpus import held_out_requests
from weft.server.demo.styles import STYLES

EACH = 12


def changed(folder: Path, factor: float) -> Path:
    """The pirate's adapter, its update multiplied; below 0 it is turned against what it learnt."""
    shutil.copytree(ADAPTERS / "pirate", folder)
    return edit_tensors(
        folder, lambda found: {k: v * factor if "lora_B" in k else v for k, v in found.items()}
    )


def held_out(path: Path) -> Path:
    """Requests to be answered as a pirate does, and others to be answered as the base does."""
    requests = held_out_requests(2 * EACH, seed=5)
    lines = [
        {
            "messages": [{"role": "user", "content": request.prompt}],
            "completion": STYLES["pirate" if number < EACH else "plain"](request),
            "general": number >= EACH,
        }
        for number, request in enumerate(requests)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_verdicts_on_the_embedded_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    adapters = {
        "pirate": ADAPTERS / "pirate",
        "terse": ADAPTERS / "terse",
        "against": changed(tmp_path / "against", -1.0),
        "nothing": changed(tmp_path / "nothing", 1e-3),
    }
    files = {name: tmp_path / f"report.{name}" for name in ("json", "markdown", "plot")}
    with real_server(BASE, tmp_path / "state", adapters) as url:
        flags = [part for name, path in files.items() for part in (f"--{name}", path)]
        flags += ["--data", held_out(tmp_path / "held-out.jsonl"), "--url", url]
        flags += ["--adapters", ",".join(adapters), "--adapters", "pirate:0.5,terse:0.5"]
        ended = run_weft(capsys, "evaluate", *flags)
    assert ended.code == 1  # one of them harms
    models = {model["model"]: model for model in json.loads(files["json"].read_text())["models"]}
    assert [name.partition("@")[0] for name in models] == ["base", *adapters, "pirate"]
    assert {name: (model["verdict"], model["forgets"]) for name, model in models.items()} == {
        "base": (None, None),
        "pirate@1": ("helps", True),
        "terse@1": ("harms", True),
        "against@1": ("harms", True),
        "nothing@1": ("no difference", False),
        "pirate@1:0.5,terse@1:0.5": ("helps", True),
    }
    assert models["pirate@1"]["task"]["exact_match"]["value"] > 0.8
    assert models["base"]["task"]["exact_match"]["value"] == 0.0
    told = files["markdown"].read_text()
    assert "## Task: 12 examples" in told
    assert "| nothing@1 |" in told
    assert files["plot"].read_bytes().startswith(b"\x89PNG")

"""`weft evaluate` against servers: one over a fake engine, and a real one with a tiny model."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_server import BASE, Api, listening, tiny_text
from api_server import api as make_api
from command_line import Ended, run_weft
from fake_engine import FakeEngine
from peft import LoraConfig, get_peft_model
from peft_adapters import save_lora
from real_server import real_server
from tiny_models import save_tiny, tiny_model, tiny_tokenizer

from weft.server.cli import evaluate as command

Capture = pytest.CaptureFixture[str]
Json = dict[str, Any]
EXAMPLES: list[Json] = [
    *({"prompt": f"Question {i}?", "completion": " Hello!", "regex": "Hel+o"} for i in range(9)),
    *({"prompt": f"Text {i}", "completion": " goes on.", "general": True} for i in range(9)),
]


def data_file(folder: Path, *lines: Json | str) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


# ---- wrong input, told before anything is sent


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not valid JSON in UTF-8"),
        ("[1]", "must hold one JSON object"),
        ('{"prompt": "a", "prompt": "b"}', "JSON key 'prompt' occurs twice"),
        ({"prompt": "a"}, "Invalid 'completion': field required."),
        ({"prompt": "a", "completion": 3}, "Invalid 'completion': should be a valid string."),
        ({"completion": "a"}, "Invalid 'messages': give either prompt or messages."),
        (
            {"messages": [{"role": "user"}], "completion": "a"},
            "Invalid 'messages[0].content': field required.",
        ),
        (EXAMPLES[0] | {"regex": "("}, "Invalid 'regex': is not a valid regular expression."),
        (EXAMPLES[0] | {"jsn": True}, "'jsn' is not supported by this server."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_line_is_named(capsys: Capture, tmp_path: Path, line: Json | str, said: str) -> None:
    data = data_file(tmp_path, EXAMPLES[0], "", line)
    ended = run_weft(capsys, "evaluate", "--data", data, "--adapters", "a")
    assert (ended.code, ended.lines) == (2, [f"weft: {data}:3: {said}"])


def test_files_that_cannot_be_used(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*flags: object) -> str:
        ended = run_weft(capsys, "evaluate", "--adapters", "a", "--data", *flags)
        assert ended.code == 2
        (line,) = ended.lines
        return line.removeprefix("weft: ")

    data = data_file(tmp_path, EXAMPLES[0])
    nowhere = tmp_path / "none" / "out"
    assert said(nowhere) == f"{nowhere}: No such file or directory"
    assert said(data_file(tmp_path, "")) == f"{data}: holds no example"
    assert said(data, "--json", nowhere).startswith(f"--json: {nowhere} cannot be written: ")
    assert said(data, "--markdown", tmp_path).endswith("it is a folder")
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    wanted = "--plot: needs matplotlib: pip install 'weft[plots]'"
    assert said(data, "--plot", tmp_path / "out.png") == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([" , "], "--adapters: name at least one"),
        (
            ["base,a:0.5,b:0.5"],
            "--adapters base,a:0.5,b:0.5: a blend has no base in it: name the base in an "
            "--adapters of its own",
        ),
    ],
)
def test_adapters_that_cannot_be_meant(
    capsys: Capture, tmp_path: Path, options: list[str], said: str
) -> None:
    flags = [part for option in options for part in ("--adapters", option)]
    ended = run_weft(capsys, "evaluate", "--data", data_file(tmp_path, EXAMPLES[0]), *flags)
    assert (ended.code, ended.lines) == (2, [f"weft: {said}"])


# ---- a fake engine


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    engine = FakeEngine(reply=tuple(tiny_text().encode(" Hello!")), losses={"": 1.0})
    with make_api(tmp_path, engine) as made:
        yield made
        made.check()


def evaluate(capsys: Capture, url: str, data: Path, adapters: str, *flags: object) -> Ended:
    arguments = ("--data", data, "--adapters", adapters, "--url", url, *flags)
    return run_weft(capsys, "evaluate", *arguments)


async def test_tables_and_files(api: Api, capsys: Capture, tmp_path: Path) -> None:
    better, worse = await api.add("better", seed=1), await api.add("worse", seed=2)
    api.engine.losses |= {better: 0.5, worse: 2.0}
    api.engine.replies[worse] = tuple(tiny_text().encode(" no"))
    data = data_file(tmp_path, *EXAMPLES)
    files = {name: tmp_path / f"out.{name}" for name in ("json", "markdown", "plot")}
    flags = [part for name, path in files.items() for part in (f"--{name}", path)]
    with listening(api.app) as url:
        ended = evaluate(capsys, url, data, "base,better,worse", *flags)
    assert ended.code == 1
    assert ended.err == ""
    task, general = ended.out.split("\n\n")[:2]
    title, heading, *rows = task.splitlines()
    assert title == "task: 9 examples"
    assert heading.split() == (
        ["model", "loss", "difference", "perplexity", "exact", "match", "regex", "verdict"]
    )
    assert [row.split()[0] for row in rows] == [BASE, "better@1", "worse@1"]
    assert [row.split()[-1] for row in rows] == ["-", "helps", "harms"]
    assert "+1.000 [+1.000, +1.000]" in rows[2]
    assert "0% [0%, 0%]" in rows[2]
    assert "100% [100%, 100%]" in rows[0]
    assert [row.split()[-1] for row in general.splitlines()[2:]] == ["-", "seen", "forgets"]
    written = json.loads(files["json"].read_text())
    assert [model["verdict"] for model in written["models"]] == [None, "helps", "harms"]
    told = files["markdown"].read_text()
    assert told.startswith("## Task: 9 examples\n\n| model | loss | difference |")
    assert "| helps |" in told
    assert "| forgets |" in told
    assert files["plot"].read_bytes().startswith(b"\x89PNG")


async def test_lists_and_blends_are_told_apart(api: Api, capsys: Capture, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b", "c"), 1):
        await api.add(name, seed=seed)
    data, out = data_file(tmp_path, *EXAMPLES), tmp_path / "out.json"
    with listening(api.app) as url:
        flags = ("--adapters", "a:0.7, b:0.3", "--adapters", "c@1", "--json", out)
        ended = evaluate(capsys, url, data, "base,a,b", *flags)
    assert ended.code == 0, ended.err
    models = [model["model"] for model in json.loads(out.read_text())["models"]]
    assert models == [BASE, "a@1", "b@1", "a@1:0.7,b@1:0.3", "c@1"]
    assert "a@1:0.7,b@1:0.3" in ended.out


async def test_what_the_server_refuses_is_found_in_the_file(
    api: Api, capsys: Capture, tmp_path: Path
) -> None:
    long = {"prompt": "a" * 2000, "completion": "b"}
    data = data_file(tmp_path, EXAMPLES[0], "", long)
    with listening(api.app) as url:
        ended = evaluate(capsys, url, data, "base")
        assert ended.code == 1
        assert ended.lines[0].startswith(f"weft: {data}:3: This model's context is 256 tokens")
        ended = evaluate(capsys, url, data_file(tmp_path, EXAMPLES[0]), "nobody")
        assert ended.lines[0].startswith("weft: The model 'nobody' does not exist")


async def test_a_failed_evaluation(api: Api, capsys: Capture, tmp_path: Path) -> None:
    api.engine.break_after, api.engine.error = 3, "out_of_memory"
    with listening(api.app) as url:
        ended = evaluate(capsys, url, data_file(tmp_path, *EXAMPLES), "base")
    assert ended.code == 1
    assert ended.lines == ["weft: There was not enough memory for this request."]


async def test_an_interrupt_cancels(
    api: Api, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", interrupt)
    with listening(api.app) as url:
        ended = evaluate(capsys, url, data_file(tmp_path, *EXAMPLES), "base")
    assert ended.code == 130
    assert not api.services.evaluations.of(api.services.tenants.contexts[0])


# ---- a real engine

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
LORA: Json = {"r": 4, "target_modules": ["lm_head", "q_proj", "up_proj"]}
TASK = [{"prompt": f"{word}:", "completion": " done"} for word in WORDS]
GENERAL = [{"prompt": word[::-1], "completion": f" {word}", "general": True} for word in WORDS]


def save_trained(folder: Path) -> Path:
    """A LoRA that was trained, for a moment, to answer " done"."""
    text = tiny_text()
    answer = [*text.encode(" done"), tiny_tokenizer().eos_token_id]
    rows = torch.tensor([text.encode(f"{word}:")[-3:] + answer for word in ("nine", "more")])
    labels = rows.clone()
    labels[:, : -len(answer)] = -100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules="all-linear"))
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            model(input_ids=rows, labels=labels).loss.backward()
            optimizer.step()
        model.save_pretrained(str(folder))
    return folder


def test_verdicts_of_a_real_engine(capsys: Capture, tmp_path: Path) -> None:
    adapters = {
        "noise": save_lora(tmp_path / "noise", "llama", strength=10.0, **LORA),
        "nothing": save_lora(tmp_path / "nothing", "llama", strength=1e-4, **LORA),
        "trained": save_trained(tmp_path / "trained"),
    }
    model = save_tiny("llama", tmp_path / "llama")
    data = data_file(tmp_path, *TASK, *GENERAL)
    with real_server(model, tmp_path / "state", adapters) as url:
        flags = ("--json", tmp_path / "out.json")
        ended = evaluate(capsys, url, data, ",".join(adapters), *flags)
        flags = ("--json", tmp_path / "again.json", "--plot", tmp_path / "empty.png")
        again = evaluate(capsys, url, data, "base", *flags)
        shown = run_weft(capsys, "adapters", "show", "noise", "--url", url).out
    assert (ended.code, again.code) == (1, 0)
    assert "model.layers.1: " in shown
    assert "times as large as its weights" in shown
    result, repeated = (
        json.loads((tmp_path / name).read_text()) for name in ("out.json", "again.json")
    )
    found = {model["model"]: model for model in result["models"]}
    assert {name: model["verdict"] for name, model in found.items()} == {
        "llama": None,
        "noise@1": "harms",
        "nothing@1": "no difference",
        "trained@1": "helps",
    }
    assert found["noise@1"]["forgets"] is True
    assert found["nothing@1"]["forgets"] is False
    assert found["trained@1"]["task"]["exact_match"]["value"] > 0
    for name in ("task", "general"):
        once, twice = found["llama"][name]["loss"], repeated["models"][0][name]["loss"]
        assert once["value"] == pytest.approx(twice["value"], abs=1e-5)


def test_the_loss_is_the_models_own(capsys: Capture, tmp_path: Path) -> None:
    """Beside transformers, one example at a time."""
    model = tiny_model("llama")
    folder = save_tiny("llama", tmp_path / "llama")
    text = tiny_text()
    expected = []
    for example in TASK:
        before = text.encode(example["prompt"])
        whole = torch.tensor([text.encode(example["prompt"] + example["completion"])])
        with torch.no_grad():
            chances = model(whole).logits.log_softmax(-1)[0, :-1]
        own = chances.gather(1, whole[0, 1:, None])[len(before) - 1 :]
        expected.append(-own.sum().item())
    with real_server(folder, tmp_path / "state", {}) as url:
        flags = ("--json", tmp_path / "out.json")
        evaluate(capsys, url, data_file(tmp_path, *TASK), "base", *flags)
    outcomes = json.loads((tmp_path / "out.json").read_text())["models"][0]["outcomes"]
    assert [one["loss"] for one in outcomes] == pytest.approx(expected, abs=1e-3)

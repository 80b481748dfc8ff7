"""What the command line says of wrong arguments: one line each, naming them, exit code 2."""

import socket
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import run_weft
from tiny_models import save_tiny

from weft.server.settings import Settings

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*Settings.model_fields, "config", "url"):
        monkeypatch.delenv(f"WEFT_{name.upper()}", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


def test_version(capsys: Capture) -> None:
    assert run_weft(capsys, "--version") == (0, f"weft {version('weft')}\n", "")


@pytest.mark.parametrize("command", [(), ("adapters",), ("config",)])
def test_a_command_without_its_subcommand_shows_help(capsys: Capture, command: tuple[str]) -> None:
    ended = run_weft(capsys, *command)
    assert ended.code == 2
    assert "Commands:" in ended.err


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["sevre"], ["weft: No such command 'sevre'."]),
        (["serve", "m", "--hots", "x"], ["weft: No such option: --hots"]),
        (["serve", "m", "--port"], ["weft: Option '--port' requires an argument."]),
        (["serve"], ["weft: MODEL: name a local folder or a hub id"]),
        (["serve", "m", "n"], ["weft: Got unexpected extra argument"]),
        (
            ["serve", "m", "--port", "80 80", "--device", "gpu"],
            [
                "weft: --port: should be a valid integer, not '80 80'",
                "weft: --device: should be 'auto', 'cuda' or 'cpu', not 'gpu'",
            ],
        ),
        (["serve", "m", "--config", "/none.toml"], ["weft: --config: /none.toml: No such file"]),
        (["demo", "--adapter", "a=b"], ["weft: No such option: --adapter"]),
        (["inspect", "x"], ["weft: Missing option '--base'."]),
        (["verify", "x", "--base", "/none"], ["weft: --base: there is no folder /none"]),
        (["adapters", "show"], ["weft: Missing argument 'NAME'."]),
        (["adapters", "list", "--url", "x"], ["weft: --url: should be http://HOST:PORT, not 'x'"]),
        (["adapters", "load", "a", "b", "--repo", "--on-server"], ["weft: --repo and --on-server"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_arguments(capsys: Capture, arguments: list[str], lines: list[str]) -> None:
    ended = run_weft(capsys, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.lines) == len(lines)
    for said, expected in zip(ended.lines, lines, strict=True):
        assert said.startswith(expected)


def test_what_vllm_needs_is_accepted_with_one_notice(capsys: Capture) -> None:
    flags = ["--enable-lora", "--max-loras", "4", "--max-lora-rank", "64", "--max-cpu-loras", "8"]
    ended = run_weft(capsys, "config", "show", *flags, "--lora-modules", "a=/x")
    assert ended.code == 0
    (notice,) = ended.lines
    assert notice.startswith("weft: --enable-lora, --max-loras, --max-lora-rank, --max-cpu-loras: ")
    assert "a=/x" in ended.out


def test_each_setting_has_its_flag(capsys: Capture) -> None:
    shown = run_weft(capsys, "serve", "--help").out
    for name in Settings.model_fields:
        flag = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
        assert f" {flag}" in shown


def test_config_show_tells_where_each_value_comes_from(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "weft.toml"
    config.write_text('kv-cache-memory = "1GiB"\n')
    monkeypatch.setenv("WEFT_SEED", "7")
    monkeypatch.setenv("WEFT_API_KEY", "hunter2")
    monkeypatch.setenv("WEFT_CONFIG", str(config))
    shown = run_weft(capsys, "config", "show", "--sources", "--no-enable-prefix-caching").out
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.splitlines()}
    assert rows["--kv-cache-memory"].split("  ")[0] == "1073741824 (1 GiB)"
    assert rows["--kv-cache-memory"].endswith(f"{config}: kv_cache_memory")
    assert rows["--seed"].split() == ["7", "WEFT_SEED"]
    assert rows["--enable-prefix-caching"].split() == ["off", "--enable-prefix-caching"]
    assert rows["--api-key"].split() == ["***", "WEFT_API_KEY"]
    assert rows["--port"].split() == ["8000", "default"]


# ---- what `serve` finds out before it loads the model


def test_a_taken_port_is_told_at_once(capsys: Capture, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_weft(capsys, "serve", model, "--port", port)
    assert ended.code == 2
    assert ended.lines == [
        f"weft: --port {port} is taken by another program; choose one, or 0 for a free one"
    ]


def test_a_host_of_another_machine(capsys: Capture, model: Path) -> None:
    ended = run_weft(capsys, "serve", model, "--host", "192.0.2.1", "--port", 0)
    assert ended.code == 2
    assert ended.lines[0].startswith("weft: WARNING: --host 192.0.2.1 without --api-key")
    assert ended.lines[1].startswith("weft: --host 192.0.2.1: ")


def test_a_model_that_is_nowhere(capsys: Capture) -> None:
    ended = run_weft(capsys, "serve", "nobody/nothing", "--port", 0)
    assert ended.code == 2
    assert ended.lines == [
        "weft: MODEL: nobody/nothing: no local folder, not in the hub's cache, "
        "and the hub cannot be reached"
    ]


def test_a_folder_without_tokenizer(capsys: Capture, model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(model / name)
    ended = run_weft(capsys, "serve", bare, "--port", 0)
    assert ended.code == 2
    (line,) = ended.lines
    assert line.startswith(f"weft: MODEL: {bare} holds no tokenizer that can be read")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_model(
    capsys: Capture, model: Path, tmp_path: Path, missing: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        if path.name != missing:
            (broken / path.name).symlink_to(path)
    ended = run_weft(capsys, "serve", broken, "--port", 0)
    assert ended.code == 2
    (line,) = ended.lines
    assert line.startswith(f"weft: MODEL: {broken} has no ")
    assert missing.removeprefix("model") in line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--adapter", "a={}/none"], "weft: --adapter a={}/none: adapter folder: is not a folder"),
        (["--adapter", "a={}"], "weft: --adapter a={}: adapter_config.json: is missing"),
        (["--adapter-dir", "{}/none"], "weft: --adapter-dir {}/none: is not a folder"),
        (["--tenants", "{}/none"], "weft: --tenants: {}/none: No such file or directory"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_files_that_are_not_there(
    capsys: Capture, model: Path, tmp_path: Path, flags: list[str], line: str
) -> None:
    ended = run_weft(
        capsys, "serve", model, "--port", 0, *(flag.format(tmp_path) for flag in flags)
    )
    assert ended.code == 2
    assert ended.lines == [line.format(tmp_path)]


def test_two_adapters_of_one_name(capsys: Capture, model: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    twice = ["--adapter", f"a={tmp_path / 'a'}"] * 2
    ended = run_weft(capsys, "serve", model, "--port", 0, *twice)
    assert ended.code == 2
    assert ended.lines == ["weft: --adapter: the name a is given twice"]


def test_listening_for_everybody_without_a_key_is_warned_of(capsys: Capture) -> None:
    ended = run_weft(capsys, "serve", "/none", "--host", "0.0.0.0", "--port", "0")
    assert "WARNING: --host 0.0.0.0 without --api-key or --tenants" in ended.err
    for safe in (("--host", "0.0.0.0", "--api-key", "k"), ("--host", "127.0.0.1")):
        assert "WARNING" not in run_weft(capsys, "serve", "/none", "--port", "0", *safe).err


def test_each_fault_of_a_tenants_file_is_a_line(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.acme]\nweight = 0\nnmae = 1\n")
    ended = run_weft(capsys, "serve", "/none", "--tenants", path)
    assert ended.code == 2
    assert ended.lines == [
        f"weft: --tenants: {path}: tenants.acme.weight: should be greater than 0, not 0",
        f"weft: --tenants: {path}: tenants.acme.nmae: there is no such field",
    ]

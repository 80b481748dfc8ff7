"""Sources, their order, and what is said of a wrong value."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.retention import Retention
from weft.server.settings import AdapterSource, Settings, SettingsError, parse_size, read_settings


@pytest.fixture(autouse=True)
def no_weft_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WEFT_{name.upper()}", raising=False)


def lines_of(flags: dict[str, object], config: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_settings(flags, config)
    return caught.value.lines


def test_flag_beats_variable_beats_file_beats_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "weft.toml"
    config.write_text('port = 1\nseed = 1\nmax-num-seqs = 1\nhost = "0.0.0.0"\n')
    monkeypatch.setenv("WEFT_PORT", "2")
    monkeypatch.setenv("WEFT_SEED", "2")
    got = read_settings({"port": "3"}, config)
    assert (got.settings.port, got.settings.seed, got.settings.max_num_seqs) == (3, 2, 1)
    assert got.sources["port"] == "--port"
    assert got.sources["seed"] == "WEFT_SEED"
    assert got.sources["max_num_seqs"] == f"{config}: max_num_seqs"
    assert got.sources["device"] == "default"


def test_settings_made_in_code_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_PORT", "2")
    assert Settings().port == 8000


@given(
    number=st.integers(0, 10**6),
    unit=st.sampled_from([("", 1), ("B", 1), ("KB", 10**3), ("MiB", 2**20), ("GiB", 2**30)]),
    space=st.sampled_from(["", " "]),
)
def test_sizes(number: int, unit: tuple[str, int], space: str) -> None:
    name, factor = unit
    for written in (name, name.lower()):
        assert parse_size(f"{number}{space}{written}") == number * factor


def test_fractions_of_a_unit_and_auto() -> None:
    assert parse_size("1.5GiB") == 3 * 2**29
    assert parse_size("auto") is None
    assert read_settings({"kv_cache_memory": "auto"}).settings.kv_cache_memory is None


@given(st.text(st.characters(categories=["L", "P", "S"]), min_size=1))
def test_whatever_is_no_size_is_refused_in_one_line(text: str) -> None:
    if text.lower() != "auto":
        (line,) = lines_of({"adapter_memory": text})
        assert line.startswith("--adapter-memory: should be a size like 10GiB")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"port": "99999"}, "--port: should be less than or equal to 65535, not '99999'"),
        ({"port": "http"}, "--port: should be a valid integer, not 'http'"),
        ({"device": "gpu"}, "--device: should be 'auto', 'cuda' or 'cpu', not 'gpu'"),
        ({"adapter": ["shop"]}, "--adapter: should be NAME=PATH, not 'shop'"),
        ({"adapter": ["=a"]}, "--adapter: should be NAME=PATH, not '=a'"),
        ({"speculation": "on"}, "--speculation: should be 'ngram' or 'off', not 'on'"),
        ({"threads": "0"}, "--threads: should be greater than or equal to 1, not '0'"),
        (
            {"kv_cache_memory": "-1"},
            "--kv-cache-memory: should be a size like 10GiB, 512MB or a number of bytes, or auto, "
            "not '-1'",
        ),
    ],
)
def test_a_wrong_flag_is_named(flags: dict[str, object], line: str) -> None:
    assert lines_of(flags) == [line]


def test_every_wrong_value_gets_its_line_in_the_words_of_its_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "weft.toml"
    config.write_text('sed = 1\nenable-prefix-caching = "maybe"\n')
    monkeypatch.setenv("WEFT_PORT", "x")
    assert set(lines_of({"dtype": "int4"}, config)) == {
        "--dtype: should be 'auto', 'bfloat16', 'float16' or 'float32', not 'int4'",
        "WEFT_PORT: should be a valid integer, not 'x'",
        f"{config}: enable_prefix_caching: should be a valid boolean, not 'maybe'",
        f"{config}: sed: there is no such setting",
    }


def test_a_kubernetes_service_variable_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_PORT", "tcp://10.0.0.1:80")
    (line,) = lines_of({})
    assert line.startswith("WEFT_PORT: holds a Kubernetes service address; set enableServiceLinks")


def test_a_key_is_never_repeated(tmp_path: Path) -> None:
    config = tmp_path / "weft.toml"
    config.write_text("api-key = 987654321\n")
    assert "987654321" not in "\n".join(lines_of({}, config))
    assert "hunter2" not in repr(read_settings({"api_key": "hunter2"}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"port = [", "Invalid value"), (b"\xff\xfe", "can't decode")],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    config = tmp_path / "weft.toml"
    if content is not None:
        config.write_bytes(content)
    (line,) = lines_of({}, config)
    assert line.startswith(f"--config: {config}: ")
    assert reason in line


def test_lists_come_from_repeated_flags_commas_and_arrays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = (AdapterSource("a", Path("/x")), AdapterSource("b", Path("/y")))
    assert read_settings({"adapter": ["a=/x", "b=/y"]}).settings.adapter == expected
    config = tmp_path / "weft.toml"
    config.write_text('adapter = ["a=/x", "b=/y"]\nadapter-root = ["/r"]')
    got = read_settings({}, config).settings
    assert (got.adapter, got.adapter_root) == (expected, (Path("/r"),))
    monkeypatch.setenv("WEFT_ADAPTER", "a=/x, b=/y")
    assert read_settings({}).settings.adapter == expected


def test_a_path_may_hold_an_equals_sign() -> None:
    got = read_settings({"adapter": ["a=/x=y"]}).settings.adapter
    assert got == (AdapterSource("a", Path("/x=y")),)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 2_592_000), ("12h", 43_200), ("1.5 m", 90), ("10s", 10), ("forever", None)],
)
def test_how_long_versions_are_kept(text: str, seconds: float | None) -> None:
    got = read_settings({"keep_versions": "3", "keep_versions_for": text}).settings
    assert got.retention == Retention(3, seconds)


@pytest.mark.parametrize("text", ["30", "a week", "-1d"])
def test_a_duration_that_is_none(text: str) -> None:
    (line,) = lines_of({"keep_versions_for": text})
    assert line.startswith("--keep-versions-for: should be a duration like 30d")

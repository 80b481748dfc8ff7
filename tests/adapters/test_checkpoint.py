import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import CONFIG, WEIGHTS, safetensors_bytes, write_adapter
from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.checkpoint import read_checkpoint, start_digest
from weft.adapters.errors import AdapterInvalid
from weft.adapters.tensors import all_finite, read_tensors

CONFIGURATION: dict[str, Any] = {"peft_type": "LORA", "r": 2, "target_modules": ["b", "a"]}
TENSORS = {"x": torch.arange(6.0).view(2, 3), "y": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", CONFIGURATION, TENSORS)


def refusal(folder: Path) -> AdapterInvalid:
    with pytest.raises(AdapterInvalid) as caught:
        read_checkpoint(folder)
    assert str(folder.parent) not in str(caught.value)
    return caught.value


def test_a_folder_is_read(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.config == CONFIGURATION
    assert checkpoint.header.tensors["x"].shape == (2, 3)
    assert checkpoint.weights == folder / WEIGHTS
    assert checkpoint.nbytes == (folder / WEIGHTS).stat().st_size


def test_the_digest_is_what_its_definition_says(folder: Path) -> None:
    config = b'{"peft_type":"LORA","r":2,"target_modules":["b","a"]}'
    expected = hashlib.sha256(len(config).to_bytes(8, "little") + config)
    expected.update((folder / WEIGHTS).read_bytes())
    assert read_checkpoint(folder).digest == expected.hexdigest()


def test_the_digest_knows_contents_and_not_how_they_are_written(folder: Path) -> None:
    before = read_checkpoint(folder).digest
    (folder / CONFIG).write_text(json.dumps(CONFIGURATION, indent=3, sort_keys=True))
    (folder / "README.md").write_text("words")
    assert read_checkpoint(folder).digest == before
    (folder / CONFIG).write_text(json.dumps(CONFIGURATION | {"r": 3}))
    assert read_checkpoint(folder).digest != before
    write_adapter(folder, CONFIGURATION, TENSORS | {"y": torch.zeros(3, dtype=torch.bfloat16)})
    assert read_checkpoint(folder).digest != before


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers()))
def test_equal_configurations_have_equal_digests(config: dict[str, int]) -> None:
    turned = dict(reversed(config.items()))
    assert start_digest(config).digest() == start_digest(turned).digest()


def test_a_named_adapter_in_a_sub_folder(folder: Path) -> None:
    assert read_checkpoint(folder.parent).weights == folder / WEIGHTS


def test_two_sub_folders_are_ambiguous(folder: Path) -> None:
    write_adapter(folder.parent / "other", CONFIGURATION, TENSORS)
    assert "2 sub-folders have one (adapter, other)" in refusal(folder.parent).reason


def test_missing_files_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    error = refusal(folder)
    assert (error.where, error.reason) == (WEIGHTS, "is missing")
    (folder / CONFIG).unlink()
    assert refusal(folder).where == CONFIG
    assert refusal(folder / "nowhere").reason == "is not a folder"
    (folder / CONFIG).mkdir()
    assert refusal(folder).where == CONFIG


def test_a_file_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(folder).reason == "cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter_model.pkl"])
def test_a_pickle_is_refused(name: str, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / name)
    error = refusal(folder)
    assert error.where == name
    assert f"torch.load('{name}'" in error.reason


def test_the_command_that_a_refusal_names_converts_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(TENSORS, folder / "adapter_model.bin")
    error = refusal(folder)
    command = error.reason.partition("convert it with: python ")[2]
    program = command.removeprefix('-c "').removesuffix('"')
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, timeout=120)
    tensors = read_tensors(read_checkpoint(folder))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_pickle_is_not_read_under_another_name(folder: Path) -> None:
    torch.save(TENSORS, folder / WEIGHTS)
    assert "is a pickle" in refusal(folder).reason
    (folder / WEIGHTS).write_bytes(pickle.dumps(_Touch(folder / "ran")))
    refusal(folder)
    assert not (folder / "ran").exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"r": 1, "r": 2}', "'r' occurs twice"),
        (b'{"r": NaN}', "holds NaN"),
        (b'{"r":' * 20 + b"1" + b"}" * 20, "more than 16 levels"),
        (b'{"r":' * 100_000, "nested too deeply"),
        (b'{"r": "' + b"x" * (1 << 20) + b'"}', "larger than 1048576 bytes"),
    ],
)
def test_a_malformed_configuration(text: bytes, reason: str, folder: Path) -> None:
    (folder / CONFIG).write_bytes(text)
    error = refusal(folder)
    assert error.where == CONFIG
    assert reason in error.reason


def test_every_truncation_of_the_weights(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for size in range(len(whole)):
        (folder / WEIGHTS).write_bytes(whole[:size])
        assert "truncated" in refusal(folder).reason


def test_a_header_of_94_megabytes_is_not_even_read(folder: Path) -> None:
    with (folder / WEIGHTS).open("wb") as file:
        file.write((94 << 20).to_bytes(8, "little"))
        file.truncate(95 << 20)
    assert "at most 8388608" in refusal(folder).reason


def test_tensors_are_what_was_saved(folder: Path) -> None:
    tensors = read_tensors(read_checkpoint(folder))
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite(dtype: torch.dtype, value: float, folder: Path) -> None:
    bad = torch.ones(10, 1001, dtype=dtype)
    bad[6, 307] = value
    write_adapter(folder, CONFIGURATION, TENSORS | {"bad": bad})
    with pytest.raises(AdapterInvalid, match="bad: holds NaN or infinity"):
        read_tensors(read_checkpoint(folder))


@given(
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(1, 300),
    st.dictionaries(st.integers(0, 299), st.sampled_from([torch.nan, torch.inf, -torch.inf, 6e4])),
)
def test_one_value_that_is_not_finite_is_seen_anywhere(
    dtype: torch.dtype, size: int, values: dict[int, float]
) -> None:
    tensor = torch.zeros(size, dtype=dtype)
    for index, value in values.items():
        tensor[index % size] = value
    assert all_finite(tensor) == bool(torch.isfinite(tensor).all())


def test_tensors_that_do_not_start_at_a_multiple_of_their_size(folder: Path) -> None:
    header = {
        "a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
    }
    values = torch.ones(1, dtype=torch.float16).numpy().tobytes()
    values += torch.full((1,), 3.0).numpy().tobytes()
    (folder / WEIGHTS).write_bytes(safetensors_bytes(header, values))
    assert read_tensors(read_checkpoint(folder))["b"].item() == 3.0


@pytest.mark.parametrize("change", ["value", "gone", "shorter"])
def test_files_that_change_after_the_check(change: str, folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    if change != "gone":
        changed = data[:-1] if change == "shorter" else data[:-1] + b"\x3e"
        (folder / WEIGHTS).write_bytes(changed)
    with pytest.raises(AdapterInvalid):
        read_tensors(checkpoint)

"""Small adapters as bytes, and a disk that fails when told to. No torch: processes start fast."""

import errno
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from weft.adapters.files import Files
from weft.adapters.store import Source

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def config_bytes(**fields: Any) -> bytes:
    return json.dumps({"peft_type": "LORA", "r": 1} | fields).encode()


def weights_bytes(seed: int, values: int = 8) -> bytes:
    """A safetensors file of one float32 tensor that differs by `seed`."""
    data = (seed.to_bytes(2, "little") + b"\x80\x3f") * values
    spec = {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}
    header = json.dumps({"base_model.model.m.lora_A.weight": spec}).encode()
    return len(header).to_bytes(8, "little") + header + data


def adapter(seed: int) -> Source:
    """An adapter's two files, open for reading."""
    return io.BytesIO(config_bytes()), io.BytesIO(weights_bytes(seed))


def adapter_folder(path: Path, seed: int) -> Path:
    """An adapter's folder."""
    path.mkdir(parents=True)
    (path / CONFIG).write_bytes(config_bytes())
    (path / WEIGHTS).write_bytes(weights_bytes(seed))
    return path


class TroubledFiles(Files):
    """Real files, whose operation number `at`, counted from 0, meets `trouble`."""

    def __init__(self, trouble: Callable[[str], None], at: int) -> None:
        self.trouble = trouble
        self.at = at
        self.operations: list[str] = []

    def _count(self, operation: str) -> None:
        self.operations.append(operation)
        if len(self.operations) - 1 == self.at:
            self.trouble(operation)

    def make_folder(self, path: Path) -> None:
        self._count("make_folder")
        super().make_folder(path)

    def create(self, path: Path) -> BinaryIO:
        self._count("create")
        return super().create(path)

    def write(self, file: BinaryIO, data: memoryview) -> None:
        half = len(data) // 2
        super().write(file, data[:half])
        self._count("write")
        super().write(file, data[half:])

    def sync(self, file: BinaryIO) -> None:
        self._count("sync")
        super().sync(file)

    def sync_folder(self, path: Path) -> None:
        self._count("sync_folder")
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename")
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._count("remove")
        super().remove(path)

    def remove_folder(self, path: Path) -> None:
        self._count("remove_folder")
        super().remove_folder(path)


def fail_with(code: int) -> Callable[[str], None]:
    """Trouble: the operation raises OSError."""

    def fail(operation: str) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def kill(operation: str) -> None:
    """Trouble: the process is gone, as with kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


DISK_FULL = fail_with(errno.ENOSPC)
DISK_BROKEN = fail_with(errno.EIO)

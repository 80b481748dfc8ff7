"""A `weft serve` of a benchmark's own: a free port, a state folder with adapters in it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from msgspec import structs

from weft.adapters.registry import Registry
from weft.adapters.store import Source, Store
from weft.server.engine.messages import LoadReport
from weft.server.tenants import DEFAULT_TENANT

MEMORY_DISK = Path("/dev/shm")
WEFT = Path(sys.executable).with_name("weft")


@dataclass(frozen=True)
class WeftServer:
    """url: without `/v1`   model: the base's name   dtype: of its weights   pid: of the server"""

    url: str
    model: str
    dtype: str
    pid: int


@contextmanager
def weft_server(
    base: Path, adapters: Mapping[str, Source], *arguments: object
) -> Iterator[WeftServer]:
    """Serves a base, with adapters that are registered and not loaded yet; `arguments` are flags.

    Files lie in memory where the machine has a disk there, so reading them takes what it takes from
    the page cache. Raises RuntimeError, with what the server said, if it does not start.
    """
    memory = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, tempfile.TemporaryFile("w+") as said:
        state = Path(folder) / "state"
        _register(state, adapters)
        command = [WEFT, "serve", base, "--state-dir", state, "--port", 0, *arguments]
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=said, text=True
        )
        try:
            fields = _fields(process)
            if "URL" not in fields:
                said.seek(0)
                raise RuntimeError(f"weft did not start: {said.read().strip()}")
            model = fields["model"].split(" ")[0]
            dtype = fields["device"].rpartition(", ")[2]
            yield WeftServer(fields["URL"], model, dtype, process.pid)
        finally:
            process.terminate()
            process.communicate()


def _register(state: Path, adapters: Mapping[str, Source]) -> None:
    """Puts adapters into a state folder as if they had been uploaded long ago."""
    registry = Registry(state / "registry.sqlite", Store(state / "versions"))
    try:
        for name, source in adapters.items():
            with registry.ingest(DEFAULT_TENANT, source) as upload:
                registry.put(DEFAULT_TENANT, name, upload, _report(upload.digest, upload.nbytes))
    finally:
        registry.close()


def _report(digest: str, nbytes: int) -> str:
    """What a load would have found, as far as anything but people reads it."""
    report = LoadReport(
        digest=digest,
        method="LORA",
        rank=1,
        tensors=2,
        modules=1,
        bytes=nbytes,
        load_seconds=0.0,
        canary_difference=0.0,
        checks=(),
    )
    return orjson.dumps(structs.asdict(report)).decode()


def _fields(process: subprocess.Popen[str]) -> dict[str, str]:
    """What the server prints about itself, up to its URL or its end."""
    assert process.stdout is not None
    fields: dict[str, str] = {}
    for line in process.stdout:
        name, _, value = line.strip().partition("  ")
        fields[name] = value.strip()
        if "URL" in fields:
            break
    return fields

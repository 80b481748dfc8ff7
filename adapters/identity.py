"""Which version a folder's files are, found out in a process that a hostile file takes along.

Knows no store; what is in the files beyond their form is for those who lower them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from weft.adapters.checkpoint import CONFIG_NAME, HEAD_NAME, read_checkpoint
from weft.adapters.confinement import come_last, confine, limit
from weft.adapters.errors import AdapterInvalid, LoadFailed
from weft.adapters.header import WEIGHTS_NAME

_MEMORY = 1 << 30
_SECONDS = 300
_WALL_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """A version's digest, the size of its safetensors files, and where each of its files is.

    files: paths by the names that a store gives them
    """

    digest: str
    nbytes: int
    files: dict[str, str]


Identify = Callable[[Path], Identity]
"""Reads the files of a folder, all of them; raises AdapterInvalid, or LoadFailed for a while."""


def identify(folder: Path) -> Identity:
    """Reads them here."""
    checkpoint = read_checkpoint(folder)
    files = {CONFIG_NAME: checkpoint.weights.parent / CONFIG_NAME, WEIGHTS_NAME: checkpoint.weights}
    if checkpoint.head is not None:
        files[HEAD_NAME] = checkpoint.head.weights
    names = {name: str(path) for name, path in files.items()}
    return Identity(checkpoint.digest, checkpoint.nbytes, names)


def identify_apart(folder: Path, *, memory: int = _MEMORY, seconds: int = _SECONDS) -> Identity:
    """Reads them in a process of its own, without a network and with limits.

    memory: bytes   seconds: of processor time
    """
    command = [sys.executable, "-P", "-m", __name__, str(folder), str(memory), str(seconds)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode < 0:
        raise LoadFailed(f"reading an adapter was ended by signal {-done.returncode}")
    if done.returncode:
        raise LoadFailed(f"reading an adapter ended with code {done.returncode}")
    found = json.loads(done.stdout)
    if "reason" in found:
        raise AdapterInvalid(found["where"], found["reason"])
    return Identity(**found)


def _main(folder: str, memory: str, seconds: str) -> None:
    come_last()
    confine()
    limit(int(memory), int(seconds), _WALL_SECONDS)
    try:
        found = asdict(identify(Path(folder)))
    except AdapterInvalid as error:
        found = {"where": error.where, "reason": error.reason}
    except MemoryError:
        reason = f"needs more than {memory} bytes for its header"
        found = {"where": WEIGHTS_NAME, "reason": reason}
    os.write(sys.stdout.fileno(), json.dumps(found).encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""The digest of a base's files, computed once for as long as they stay as they are.

Imports nothing heavy: the server's process computes it while the engine's still imports.
"""

import contextlib
import fcntl
import hashlib
import json
import threading
from pathlib import Path

_CACHE = "base_digest.json"


def digest_files(folder: Path, state: Path) -> str:
    """sha256 over the model's config and weights, in the order of their names.

    `state` is a folder in which it is remembered for as long as the files' sizes and times stay.
    Where another process is computing it, it is waited for.
    """
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    stats = [(str(file.resolve()), file.stat()) for file in files]
    key = json.dumps([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
    state.mkdir(parents=True, exist_ok=True)
    cache = state / _CACHE
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _read(cache, key)
        if known is not None:
            return known
        total = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        partial = cache.with_suffix(".partial")
        partial.write_text(json.dumps({"files": key, "digest": total.hexdigest()}))
        partial.replace(cache)
        return total.hexdigest()


def begin(folder: Path, state: Path) -> threading.Thread:
    """Computes it in a thread for whoever asks next; a failure is for that one to meet."""

    def compute() -> None:
        with contextlib.suppress(OSError):
            digest_files(folder, state)

    thread = threading.Thread(target=compute, name="digest", daemon=True)
    thread.start()
    return thread


def digest_random(folder: Path, seed: int) -> str:
    """sha256 over the config and the seed of weights that are not read from files."""
    config = (folder / "config.json").read_bytes()
    return hashlib.sha256(config + f"random weights, seed {seed}".encode()).hexdigest()


def _read(cache: Path, key: str) -> str | None:
    """What the cache says of the files that `key` describes."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(cache.read_text())
        if known["files"] == key:
            return str(known["digest"])
    return None

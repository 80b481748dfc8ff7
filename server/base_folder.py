"""The base model's folder: found locally or fetched from the hub, and told from other bases.

Reads no weights; whether the model can be served is for the engine to say.
"""

import hashlib
import os
from pathlib import Path

CONFIG_NAME = "config.json"
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_SAMPLE_BYTES = 1 << 20


class BaseNotFound(Exception):
    """There is no base model to serve under this name; the message says what was missing."""


def find_base(model: str) -> Path:
    """The folder of a local path, or of a hub id after fetching it; raises BaseNotFound."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        _check(folder)
        return folder.resolve()
    if folder.exists():
        raise BaseNotFound(f"{model} is a file; name the folder that holds {CONFIG_NAME}")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise BaseNotFound(f"there is no folder {model}")
    folder = _fetch(model)
    _check(folder)
    return folder


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits that tell this base from others without reading all its weights.

    SHA-256 over the configuration and, of each weights file, its name, its size, and its first and
    last MiB.
    """
    digest = hashlib.sha256((folder / CONFIG_NAME).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(size - _SAMPLE_BYTES, 0))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def default_state_dir(folder: Path) -> Path:
    """Where adapters loaded for this base are kept: $XDG_STATE_HOME/weft/<fingerprint>."""
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "weft" / fingerprint(folder)


def _check(folder: Path) -> None:
    if not (folder / CONFIG_NAME).is_file():
        raise BaseNotFound(f"{folder} has no {CONFIG_NAME}; it is not a model's folder")
    if not any(folder.glob("*.safetensors")):
        raise BaseNotFound(f"{folder} has no *.safetensors; other weights are not read")


def _fetch(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except GatedRepoError:
        reason = "the hub asks for its terms to be accepted; then set HF_TOKEN"
    except RepositoryNotFoundError:
        reason = "neither a local folder nor a model on the hub (a private one needs HF_TOKEN)"
    except HFValidationError:
        reason = "neither a local folder nor a hub id"
    except LocalEntryNotFoundError:
        reason = "no local folder, not in the hub's cache, and the hub cannot be reached"
    except (HfHubHTTPError, OSError) as error:
        reason = f"cannot be fetched from the hub: {str(error).splitlines()[0]}"
    raise BaseNotFound(f"{model}: {reason}")

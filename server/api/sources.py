"""Where an adapter that a client names by its path on the server comes from.

A path outside the allowed roots is refused in the same words whether it exists or not.
"""

from collections.abc import Sequence
from pathlib import Path

from weft.adapters.checkpoint import (
    ADAPTERHUB_WEIGHTS_NAME,
    CONFIG_NAME,
    HEAD_NAME,
    adapter_folder,
)
from weft.adapters.header import WEIGHTS_NAME
from weft.server.arrivals import Allowance
from weft.server.errors import ApiError, ErrorCode, invalid

_TENSOR_FILES = (WEIGHTS_NAME, ADAPTERHUB_WEIGHTS_NAME, HEAD_NAME)


def allowed_folder(path: str, roots: Sequence[Path], allowance: Allowance) -> Path:
    """The adapter's folder that `path` names, relative to a root or absolute, links resolved.

    allowance: for a file of tensors   Raises ApiError where path, files or the links among them
    lead out of all roots, and AdapterInvalid where there is no adapter.
    """
    if not roots:
        raise _forbidden("no folder is open for loading by path; upload the files instead")
    resolved = [root.resolve() for root in roots]
    candidates = [_resolve(root / path) for root in resolved]
    inside = [folder for folder in candidates if _is_below(folder, resolved)]
    if not inside:
        raise _forbidden("the path is not below a folder that is open for loading")
    folder = adapter_folder(next((found for found in inside if found.is_dir()), inside[0]))
    for name in (CONFIG_NAME, *_TENSOR_FILES):
        if not _is_below(_resolve(folder / name), resolved):
            raise _forbidden(f"{name} is a link to outside of the folders open for loading")
    files = [folder / name for name in _TENSOR_FILES if (folder / name).is_file()]
    allowance.claim(max((file.stat().st_size for file in files), default=0))
    return folder


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        raise invalid("path", "is not a path") from None


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _forbidden(reason: str) -> ApiError:
    return ApiError(ErrorCode.FORBIDDEN, param="path", values={"reason": reason})

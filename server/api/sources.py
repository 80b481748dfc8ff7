"""Where an adapter that a client names by path or by repository comes from.

A path outside the allowed roots is refused in the same words whether it exists or not.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from weft.adapters.checkpoint import (
    ADAPTERHUB_WEIGHTS_NAME,
    CONFIG_NAME,
    HEAD_NAME,
    adapter_folder,
)
from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME
from weft.server.errors import ApiError, ErrorCode, invalid

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

_TENSOR_FILES = (WEIGHTS_NAME, ADAPTERHUB_WEIGHTS_NAME, HEAD_NAME)


def allowed_folder(path: str, roots: Sequence[Path], limit: int) -> Path:
    """The adapter's folder that `path` names, relative to a root or absolute, links resolved.

    limit: bytes of a file of tensors   Raises ApiError where path, files or the links among them
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
    if any(file.stat().st_size > limit for file in files):
        raise too_large(limit)
    return folder


def fetched_folder(repo: str, revision: str | None, limit: int) -> Path:
    """A repository's adapter, fetched from the hub into its cache.

    Raises ApiError where that fails, or where the weights have more than `limit` bytes.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    if not _REPO.fullmatch(repo):
        raise invalid("repo", "should be OWNER/NAME")
    try:
        url = hf_hub_url(repo, WEIGHTS_NAME, revision=revision)
        if (get_hf_file_metadata(url).size or 0) > limit:
            raise too_large(limit)
        hf_hub_download(repo, CONFIG_NAME, revision=revision)
        return Path(hf_hub_download(repo, WEIGHTS_NAME, revision=revision)).parent
    except EntryNotFoundError:
        raise AdapterInvalid("repository", f"lacks {CONFIG_NAME} or {WEIGHTS_NAME}") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise invalid("repo", "could not be fetched from the hub") from error


def too_large(limit: int) -> ApiError:
    """The answer to an adapter beyond what the server takes."""
    return ApiError(ErrorCode.REQUEST_TOO_LARGE, values={"what": "adapter", "limit": limit})


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        raise invalid("path", "is not a path") from None


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _forbidden(reason: str) -> ApiError:
    return ApiError(ErrorCode.FORBIDDEN, param="path", values={"reason": reason})

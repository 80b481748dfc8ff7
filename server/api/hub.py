"""An adapter's files from a repository of the hub: which are fetched, and at what size not.

Those of peft's and of AdapterHub's adapters. Pickle files are never fetched.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from weft.adapters.checkpoint import (
    ADAPTERHUB_WEIGHTS_NAME,
    CONFIG_NAME,
    HEAD_NAME,
    pickle_refusal,
)
from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME
from weft.server.arrivals import Allowance
from weft.server.errors import invalid
from weft.server.vocabulary import TOKENIZER_FILE

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def fetched_folder(repo: str, revision: str | None, allowance: Allowance) -> Path:
    """A repository's adapter, fetched into the hub's cache, all files of one commit.

    Raises ApiError where that fails, or where a file is larger than allowed, and AdapterInvalid
    where the repository holds no adapter that can be read.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not _REPO.fullmatch(repo):
        raise invalid("repo", "should be OWNER/NAME")
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        names = _needed(sizes)
        most = allowance.bytes
        allowance.claim(max(sizes[name] for name in names))
        if sizes.get(TOKENIZER_FILE, most) < most:  # to be compared with the base's
            names.append(TOKENIZER_FILE)
        files = [hf_hub_download(repo, name, revision=info.sha) for name in names]
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise invalid("repo", "could not be fetched from the hub") from error
    return Path(files[0]).parent


def _needed(files: Mapping[str, int]) -> list[str]:
    """The names of an adapter's files among a repository's; raises AdapterInvalid."""
    if CONFIG_NAME not in files:
        raise AdapterInvalid("repository", f"lacks {CONFIG_NAME}")
    weights = next((n for n in (WEIGHTS_NAME, ADAPTERHUB_WEIGHTS_NAME) if n in files), None)
    if weights is None:
        raise pickle_refusal(files) or AdapterInvalid(
            "repository", f"lacks {WEIGHTS_NAME}, or AdapterHub's {ADAPTERHUB_WEIGHTS_NAME}"
        )
    if weights == WEIGHTS_NAME:
        return [CONFIG_NAME, weights]
    if HEAD_NAME in files:
        return [CONFIG_NAME, weights, HEAD_NAME]
    if refusal := pickle_refusal(files, of_head=True):
        raise refusal
    return [CONFIG_NAME, weights]

import fcntl
import os
from pathlib import Path

import pytest
import torch

from weft.server.engine.loader.sealed import seal, unseal


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(5.0),
        torch.arange(6).view(2, 3),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor(2.5),
        torch.empty(0, 4),
    ],
    ids=lambda tensor: str(tuple(tensor.shape)),
)
def test_what_was_sealed_comes_out(tensor: torch.Tensor) -> None:
    before = open_files()
    data = unseal(seal(tensor))
    assert torch.equal(data.view(tensor.dtype).view(tensor.shape), tensor)
    assert open_files() <= before + 1  # a mapping keeps its own
    del data
    assert open_files() == before


def test_nobody_changes_it_and_its_owner_may() -> None:
    file = seal(torch.zeros(4, dtype=torch.uint8))
    writer = os.dup(file)
    mine = unseal(file)
    mine += 1
    with pytest.raises(PermissionError):
        os.pwrite(writer, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(writer, 0)
    assert os.pread(writer, 4, 0) == bytes(4)
    os.close(writer)


def test_memory_that_could_be_taken_away_is_refused() -> None:
    before = open_files()
    file = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, 100)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(ValueError, match="not sealed"):
        unseal(file)
    assert open_files() == before

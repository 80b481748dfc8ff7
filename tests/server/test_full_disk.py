"""The disk is full where SQLite commits: each route that changes something answers 507."""

import errno
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from api_server import api
from sqlite_disk import sqlite_on
from watched_disk import Disk, Operation


class Full:
    """A disk without room for the registry from when it is `armed`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.armed = False
        self.refused = 0

    def __call__(self, number: int, operation: Operation) -> None:
        if self.armed and operation.kind == self.kind and "registry" in operation.path.name:
            self.refused += 1
            raise OSError(errno.ENOSPC, "full")

    def reserve(self, file: int, offset: int, length: int) -> None:
        """Stands for `os.posix_fallocate`."""
        raise OSError(errno.ENOSPC, "full")


CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "/v1/adapters/new", {"path": "adapter-2"}),
    ("PUT", "/v1/adapters/old", {"path": "adapter-2"}),
    ("POST", "/v1/adapters/old/rollback", {}),
    ("POST", "/v1/adapters/old/pin", {}),
    ("DELETE", "/v1/adapters/old", {}),
    ("PUT", "/v1/aliases/live", {"targets": {"old": 1}}),
]


@pytest.mark.parametrize("kind", ["write", "sync"])
async def test_nothing_is_changed_and_each_change_can_be_made_again(
    tmp_path: Path, kind: str
) -> None:
    full = Full(kind)
    with (
        sqlite_on(Disk(full, synced=False)),
        mock.patch("os.posix_fallocate", full.reserve),
        api(tmp_path) as made,
    ):
        for seed in range(2):
            await made.add("old", seed=seed)
        made.folder(2)
        async with made.client() as client:

            async def seen() -> list[Any]:
                paths = ("/v1/adapters", "/v1/adapters/old", "/v1/aliases")
                return [(await client.get(path)).json() for path in paths]

            before = await seen()
            full.armed = True
            for method, path, body in CHANGES:
                answer = await client.request(method, path, json=body or None)
                assert answer.status_code == 507, (path, answer.text)
                assert answer.json()["error"]["code"] == "insufficient_storage"
                assert await seen() == before
            assert full.refused >= len(CHANGES)
            full.armed = False
            for method, path, body in (*CHANGES[:4], CHANGES[5]):
                answer = await client.request(method, path, json=body or None)
                assert answer.status_code == 200, (path, answer.text)
        assert made.registry.check() == ()

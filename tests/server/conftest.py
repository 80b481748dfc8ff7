"""Fixtures of the HTTP tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from api_server import Api


@pytest.fixture
def api(tmp_path: Path) -> "Iterator[Api]":
    import api_server  # here, because most tests below this folder need no app

    with api_server.api(tmp_path) as made:
        yield made
        made.check()

"""Fixtures of the HTTP tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import Api
from api_server import api as make_api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with make_api(tmp_path) as made:
        yield made
        made.check()

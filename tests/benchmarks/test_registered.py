"""The benchmark of registered adapters: a run of seconds from end to end."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import machine
import pytest
import registered
import workload


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Servers that go on until the test ends: a start takes longer than all that is asked."""
    start, started = registered.weft_server, dict[int, Any]()
    with ExitStack() as running:

        @contextmanager
        def server(folder: Path, adapters: Mapping[str, Any], *flags: Any) -> Iterator[Any]:
            if len(adapters) not in started:
                started[len(adapters)] = running.enter_context(start(folder, adapters, *flags))
            yield started[len(adapters)]

        monkeypatch.setattr(registered, "weft_server", server)
        yield


@pytest.mark.usefixtures("kept")
def test_two_servers_are_asked_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(workload, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(registered, "HOT", 4)
    registered.main(registered=9, repeats=2, requests=8, results="few")
    found = json.loads((tmp_path / "few.json").read_text())
    assert list(found["sides"]) == ["4 registered", "9 registered"]
    for side in found["sides"].values():
        assert side["errors"] == 0
        assert side["spread"][0] <= side["tokens_per_second"] <= side["spread"][1]
        assert side["server_memory_bytes"] > 1 << 20
        assert all(seconds > 0 for seconds in side["seconds_of"].values())
    ratio = found["ratio"]
    assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
    registered.main(registered=9, repeats=2, requests=8, results="few", add=True)
    more = json.loads((tmp_path / "few.json").read_text())
    assert more["pairs"] == 4
    assert more["runs"]["9 registered"][:2] == found["runs"]["9 registered"]
    assert more["ratio"]["least"] <= ratio["least"]

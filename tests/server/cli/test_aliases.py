"""`weft adapters alias`, `promote`, `rollback` and `versions` against a server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import Api, listening
from api_server import api as make_api
from command_line import Ended, run_weft

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API with `pirate` in three versions."""
    with make_api(tmp_path) as api:
        for seed in range(3):
            asyncio.run(api.add("pirate", seed=seed))
        yield api


@pytest.fixture
def adapters(api: Api, capsys: Capture) -> Iterator[Any]:
    """Runs `weft adapters ARGUMENTS` against it."""
    with listening(api.app) as url:
        yield lambda *arguments: run_weft(capsys, "adapters", *arguments, "--url", url)


def fields(ended: Ended) -> dict[str, str]:
    assert ended.code == 0, ended.err
    pairs = (line.partition("  ") for line in ended.out.splitlines() if line[:1].isalpha())
    return {name: value.strip() for name, _, value in pairs}


def test_a_split_is_made_promoted_and_rolled_back(adapters: Any) -> None:
    assert adapters("aliases").out == "no aliases\n"
    for name, target in (("stable", "pirate@1"), ("canary", "pirate@3")):
        assert adapters("alias", name, target).code == 0
    made = adapters("alias", "live", "stable=95,canary=5")
    assert "stable: 95" in made.out
    assert "canary: 5" in made.out
    adapters("promote", "live", "canary")
    listed = adapters("aliases").out.splitlines()
    assert listed[0].split() == ["name", "targets", "previous"]
    assert listed[2].split() == ["live", "canary=100", "stable=95,canary=5"]
    assert adapters("rollback", "live").code == 0
    assert adapters("aliases").out.splitlines()[2].split()[1] == "stable=95,canary=5"
    assert adapters("unalias", "live").out == "live: removed\n"
    assert adapters("rollback", "live").code == 1


def test_versions_are_listed_and_rolled_back_to(adapters: Any) -> None:
    assert fields(adapters("rollback", "pirate", "--to", 1))["id"] == "pirate@1"
    rows = adapters("versions", "pirate").out.splitlines()
    assert [row.split()[0] for row in rows] == ["version", "*", "2", "3"]
    assert adapters("versions", "nobody").code == 1


def test_a_guard_is_sent(adapters: Any) -> None:
    adapters("alias", "live", "pirate@1")
    stale = ("--if-match", "0" * 64)
    for call in (
        ("alias", "live", "pirate@2"),
        ("promote", "live", "pirate@1"),
        ("rollback", "live"),
        ("unalias", "live"),
        ("rollback", "pirate"),
        ("unload", "pirate"),
    ):
        ended = adapters(*call, *stale)
        assert ended.code == 1, call
        assert "If-Match" in ended.err
    assert adapters("aliases").out.splitlines()[1].split() == ["live", "pirate@1=100", "-"]


@pytest.mark.parametrize("targets", ["pirate=x", "pirate=1,=y"])
def test_weights_that_are_no_numbers(adapters: Any, targets: str) -> None:
    ended = adapters("alias", "live", targets)
    assert ended.code == 2
    assert "TARGETS" in ended.err


def test_what_an_alias_leads_to_cannot_be_unloaded(adapters: Any) -> None:
    adapters("alias", "live", "pirate")
    ended = adapters("unload", "pirate")
    assert ended.code == 1
    assert "'live'" in ended.err

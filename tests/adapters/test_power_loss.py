"""A power loss anywhere in a recorded story: what was answered is there, the rest whole or not.

The store's operations and SQLite's are replayed on a drive that loses whatever was not synced.
"""

from pathlib import Path

import pytest
from recorded_story import Recording, faults, record
from registry_story import story

SEED, LENGTH = 22, 16
# Nothing was answered yet while SQLite has a rollback journal: it makes the empty file with it.
BEFORE_ANYTHING = {
    "sync of registry.sqlite-journal",
    "sync_folder of the folder of registry.sqlite-journal",
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("recording"), SEED, LENGTH)


def test_the_recording_holds_all_kinds_of_changes(recording: Recording) -> None:
    verbs = {verb for verb, *_ in story(SEED, LENGTH)}
    assert verbs >= {"put", "rollback", "remove", "prune", "lead", "restart"}
    assert recording.done[-1] == LENGTH
    assert len({operation.site for operation in recording.operations}) >= 25


def test_a_power_loss_takes_nothing_that_was_answered(recording: Recording, tmp_path: Path) -> None:
    """Of every third state that a loss may leave; `tests/soak` takes all, and other stories."""
    found = list(faults(recording, tmp_path, every=3))
    assert len(found) > 500
    assert set(found) == {""}


def test_every_sync_is_needed(recording: Recording, tmp_path: Path) -> None:
    """Without any one of them some loss takes what was answered."""
    sites = {o.site for o in recording.operations if o.kind.startswith("sync")}
    assert len(sites) >= 8
    idle = []
    for number, site in enumerate(sorted(sites - BEFORE_ANYTHING)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if not any(faults(recording, folder, left_out=site)):
            idle.append(site)
    assert idle == []

"""kill -9 at disk operations of registry and store: each change is there whole, or not at all."""

from pathlib import Path

from killed_stories import killed_stories
from registry_story import digests, make, models, snapshot, story
from sqlite_disk import sqlite_on
from stored_state import State
from watched_disk import Disk, WatchedFiles


def test_stories_go_as_their_model_says(tmp_path: Path) -> None:
    known = digests(tmp_path / "digests")
    disk = Disk(synced=False)
    for seed in range(3):
        changes = story(seed, 60)
        with sqlite_on(disk):
            state = State(tmp_path / str(seed), WatchedFiles(disk))
            for change, model in zip(changes, models(changes)[1:], strict=True):
                make(state, change)
                assert snapshot(state) == model.snapshot(known), change
        assert state.registry.check() == ()
        state.registry.close()


def test_a_killed_server_has_lost_nothing(tmp_path: Path) -> None:
    """At each kind of operation once; `tests/soak` does it more often, and at random times."""
    with killed_stories(tmp_path, seed=2, length=40) as stories:
        sites = stories.sites()
        assert len(sites) >= 25
        done = {stories.kill(numbers[len(numbers) // 2]) for numbers in sites.values()}
        assert len(done) > 5

"""kill -9 of a registry, 400 times: at 25 kinds of disk operations, and at random moments."""

from pathlib import Path
from random import Random
from time import monotonic

import pytest
from killed_stories import killed_stories
from soak_results import keep

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
SITES, TIMES, RANDOM = 25, 8, 200
SEED, LENGTH = 3, 60


def test_a_killed_server_has_lost_nothing(tmp_path: Path) -> None:
    random, started = Random(0), monotonic()
    with killed_stories(tmp_path, SEED, LENGTH) as stories:
        began = monotonic()
        assert stories.kill(1 << 30) == LENGTH
        milliseconds = 1000 * (monotonic() - began)
        sites = sorted(stories.sites().items(), key=lambda site: -len(site[1]))
        assert len(sites) >= SITES
        at_sites: dict[str, list[int]] = {}
        for site, numbers in sites[:SITES]:
            chosen = [numbers[int(len(numbers) * turn / TIMES)] for turn in range(TIMES)]
            at_sites[site] = [stories.kill(number) for number in chosen]
        at_random = [stories.kill(-1 - int(random.random() * milliseconds)) for _ in range(RANDOM)]
    assert len(set(at_random)) > 10, "the story was not killed all over its length"
    keep(
        "crashes",
        {
            "cycles": SITES * TIMES + RANDOM,
            "changes_in_the_story": LENGTH,
            "answered_before_the_kill": sum(map(sum, at_sites.values())) + sum(at_random),
            "lost": 0,
            "sites": {site: len(kills) for site, kills in at_sites.items()},
            "seconds": round(monotonic() - started, 1),
        },
    )

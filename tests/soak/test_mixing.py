"""Ten thousand requests of sixteen tenants, 32 adapters in room for four: who answered whom."""

from pathlib import Path
from time import monotonic

import pytest
from mixing import ABORTED, BETWEEN, CLIENTS, NAMES, ROOM, TENANTS, mixing
from soak_results import keep

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
REQUESTS = 10_000


async def test_nobody_is_answered_by_another_ones_adapter(tmp_path: Path) -> None:
    started = monotonic()
    async with mixing(tmp_path) as server:
        seen = await server.run(REQUESTS, seed=0)
        stats = server.stats
    served = monotonic() - started
    assert seen.failures == []
    assert seen.foreign == []
    assert seen.stale == []
    assert seen.wrong == []
    assert seen.most_resident <= ROOM
    assert 0.5 * ABORTED * REQUESTS < seen.aborted < 1.5 * ABORTED * REQUESTS
    keep(
        "mixing",
        {
            "requests": REQUESTS,
            "tenants": len(TENANTS),
            "adapters": len(TENANTS) * len(NAMES),
            "room_for": ROOM,
            "clients": CLIENTS,
            "requests_between_two_replacements": BETWEEN,
            "replacements": seen.replaced,
            "left_by_their_client": seen.aborted,
            "answers_compared": len(seen.asked),
            "tokens_compared": sum(len(asked.tokens) for asked in seen.asked),
            "evictions_from_the_device": stats.evictions,
            "preemptions": stats.preemptions,
            "prompt_tokens_found_in_the_cache": stats.prefix_hits,
            "failed": 0,
            "foreign": 0,
            "stale": 0,
            "different_from_the_version_alone": 0,
            "seconds": round(served, 1),
        },
    )

"""An adapter is replaced while clients use it: no request fails, none is answered by two versions.

`tests/soak` does it for a minute.
"""

import asyncio
from pathlib import Path

from replacing import HOT, VERSIONS, Asked, History, Put, replacing

CLIENTS = 8
REPLACEMENTS = 2 * VERSIONS
BETWEEN = 10
"""Answers between two replacements."""


async def test_replacements_under_load(tmp_path: Path) -> None:
    async with replacing(tmp_path) as server:
        history = await server.history()
        turns: asyncio.Queue[None] = asyncio.Queue()
        finished = asyncio.Event()

        async def replace() -> None:
            for number in range(1, REPLACEMENTS + 1):
                for _ in range(BETWEEN):
                    await turns.get()
                await server.replace(history, number)
            finished.set()

        await asyncio.gather(
            replace(),
            server.clients(history, CLIENTS, finished.is_set, lambda: turns.put_nowait(None)),
        )
        tenant = server.services.tenants.contexts[0]
        assert len(server.services.registry.versions(tenant, HOT)) == 2
    assert len(history.asked) >= REPLACEMENTS * BETWEEN
    assert len({asked.digest for asked in history.asked}) == VERSIONS
    assert history.failed == []
    assert history.mixed == []
    assert history.stale == []


def test_a_wrong_answer_would_be_seen() -> None:
    expected = {"old": {"p": (1, 2)}, "new": {"p": (3, 4)}}
    history = History(expected, puts=[Put(0, 1, "old"), Put(4, 7, "new")])

    def asked(begin: int, end: int, digest: str, *tokens: int, status: int = 200) -> Asked:
        return Asked(begin, end, "p", status, digest, tokens, 0.0)

    good = [asked(2, 3, "old", 1, 2), asked(5, 6, "old", 1, 2), asked(5, 6, "new", 3, 4)]
    wrong = {
        "failed": asked(2, 3, "", status=503),
        "mixed": asked(5, 6, "new", 3, 2),
        "stale": asked(8, 9, "old", 1, 2),
        "early": asked(2, 3, "new", 3, 4),
    }
    history.asked = [*good, *wrong.values()]
    assert history.failed == [wrong["failed"]]
    assert history.mixed == [wrong["mixed"]]
    assert history.stale == [wrong["stale"], wrong["early"]]

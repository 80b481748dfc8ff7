"""Sixteen tenants, 32 adapters in room for four: nobody is answered by another one's adapter.

`tests/soak` does it for ten thousand requests.
"""

from pathlib import Path

from markers import FIRST_MARK, marks
from mixing import NAMES, ROOM, TENANTS, Marker, Mixed, mixing
from replacing import Asked, History

REQUESTS = 200


async def test_nobody_is_answered_by_another_ones_adapter(tmp_path: Path) -> None:
    async with mixing(tmp_path) as server:
        seen = await server.run(REQUESTS, seed=1)
    assert seen.failures == []
    assert len(seen.asked) >= REQUESTS - seen.aborted
    assert seen.aborted > 0
    assert seen.replaced == REQUESTS // 50
    assert len({asked.digest for asked in seen.asked}) > len(TENANTS) * len(NAMES)
    assert 1 < seen.most_resident <= ROOM
    assert seen.foreign == []
    assert seen.stale == []
    assert seen.wrong == []


def test_a_wrong_answer_would_be_seen() -> None:
    mine, foreign, base = marks(0)[0], marks(1)[0], FIRST_MARK - 1
    told = {"mine": (mine, foreign), "": (base, foreign), "good": (mine, mine)}
    asked = [Asked(1, 2, "0", 200, digest, tokens, 0.0) for digest, tokens in told.items()]
    markers = {digest: Marker(Path(), 0) for digest in ("mine", "good")}
    seen = Mixed({("tenant0", ""): History({}, asked)}, markers)
    assert [one.digest for one in seen.foreign] == ["mine", ""]

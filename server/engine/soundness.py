"""What must hold of a scheduler's sequences between any two steps."""

from collections.abc import Iterable, Sequence
from operator import attrgetter

from weft.server.engine.sequence import Sequence as Row
from weft.server.engine.sequence import Status


def broken_claims(
    live: Sequence[Row], queued: Iterable[Row], running: Sequence[Row], places: int
) -> tuple[str, ...]:
    """The claims that do not hold; empty when sound. places: that many may run"""
    of = {status: [seq for seq in live if seq.status is status] for status in Status}
    claims = {
        "sequences: the ended are not live": not of[Status.ENDED],
        "sequences: each waits in one place": set(queued) == set(of[Status.QUEUED]),
        "sequences: running in the order of arrival": list(running)
        == sorted(of[Status.RUNNING], key=attrgetter("arrival")),
        "sequences: at most max_num_seqs run": len(running) <= places,
        "sequences: only the running hold pages or a slot": all(
            not seq.pages and not seq.shares and not seq.computed
            for seq in live
            if seq.status is not Status.RUNNING
        ),
        "sequences: something is left to compute": all(seq.remaining > 0 for seq in live),
    }
    return tuple(claim for claim, holds in claims.items() if not holds)

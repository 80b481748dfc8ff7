"""Who lives after a step was interrupted anywhere: as if that step had never begun."""

from collections.abc import Iterable
from operator import attrgetter

from weft.server.engine.sequence import Sequence
from weft.server.engine.step_plan import Scheduled

_OWN_ENDS = ("stop", "length")
Requests = dict[str, list[Sequence]]


def revived(
    requests: Requests, ended: Iterable[Sequence], interrupted: Iterable[Scheduled]
) -> tuple[Requests, list[Sequence]]:
    """The live sequences by request, and those that have ended, each in one of the two.

    interrupted: of a step whose tokens are taken back, with the ends that came of them; a sequence
    that was made to end stays ended
    """
    known = {seq for seqs in requests.values() for seq in seqs} | set(ended)
    for item in interrupted:
        seq = item.seq
        known.add(seq)
        if seq.finish is None or seq.finish.reason in _OWN_ENDS:
            seq.finish = None
            if item.samples:
                del seq.tokens[item.plain.stop - seq.lead :]
    living: Requests = {}
    for seq in sorted(known, key=attrgetter("arrival")):
        if seq.finish is None:
            living.setdefault(seq.request.id, []).append(seq)
    return living, [seq for seq in known if seq.finish is not None]

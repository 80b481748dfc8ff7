"""The step after one that runs, planned before that one's tokens are known. Knows no tensors.

Where nobody comes or goes, the next step is one more token of each sequence, and all but the token
is known: its position, its place, the tables of pages, the adapters. So the next step can be
launched with the ids that the device has just chosen, and the host reads them while it runs.

What is found out too late costs a row, and nothing else. A sequence that ends with the token that
was read, or is aborted, paused or preempted before the next one is, has a row in the step that
runs; that row's choice is never taken. The row wrote the keys and values of a position behind all
that count as computed, to a page that was the sequence's own when it was launched, and it may have
read an adapter's slot. Whoever gets that page or slot next writes to it by what is launched later:
on one stream this comes after the row, and copies on another stream wait for the first one. And no
page that others can find has it in it: only what counts as computed is ever published.
"""

from operator import attrgetter

from weft.server.engine.drafting import Drafting
from weft.server.engine.finish import FinishRules
from weft.server.engine.page_tables import PageTables
from weft.server.engine.sequence import Status
from weft.server.engine.step_plan import Scheduled, StepPlan

_NOTHING = StepPlan(())


class Lookahead:
    """Plans decodes of the sequences of a step that runs."""

    def __init__(self, tables: PageTables, drafting: Drafting, finish: FinishRules) -> None:
        self._tables = tables
        self._drafting = drafting
        self._finish = finish

    def after(self, plan: StepPlan, running: int, *, others_wait: bool) -> StepPlan:
        """The step after `plan`, of the sequences that its tokens cannot all have ended.

        Empty where some of the `running` are not in `plan`, have more to compute or need tokens
        for their choices; where pages would have to be taken from others, or drafts may pay; and
        where others wait for the place of one that ends.
        """
        live = [item for item in plan.items if item.seq.status is Status.RUNNING]
        on = [item for item in live if not self._finish.ends_next(item.seq)]
        if (
            len(live) < running
            or (others_wait and len(on) < len(live))
            or not all(_is_known_after(item) for item in live)
            or not self._drafting.may_skip(len(on))
            or not all(self._tables.stretch(item.seq, 1) for item in on)
        ):
            return _NOTHING
        rows = (Scheduled(item.seq, item.stop, 1, samples=True) for item in on)
        return StepPlan(tuple(sorted(rows, key=attrgetter("order"))), is_ahead=True)


def _is_known_after(item: Scheduled) -> bool:
    """Whether the sequence's next row is one whose choice needs no tokens."""
    return item.samples and not item.drafts and not item.seq.sampling.looks_back

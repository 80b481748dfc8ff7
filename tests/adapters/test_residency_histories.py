"""Random histories of a residency."""

from histories import histories
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from plans import assert_installed, plan
from residency_bench import ALL, SIZE, Bench

from weft.adapters.pool import SlotRef
from weft.adapters.presence import Presence


class Life(RuleBasedStateMachine):
    """Random asking, using, draining, forgetting: what is acquired has its own values."""

    DIGESTS = "abcdef"

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(room=3, slots=3, host=4 * SIZE)
        self.bench.desk.ranks = dict(zip(self.DIGESTS, (1, 3, 4, 5, 8, 12), strict=True))
        self.refs: list[tuple[str, SlotRef]] = []

    def teardown(self) -> None:
        self.bench.desk.close()

    @rule(digest=st.sampled_from(DIGESTS))
    def ask(self, digest: str) -> None:
        if self.bench.where(digest) is Presence.DEVICE:
            ref = self.bench.residency.acquire(digest)
            self.refs.append((digest, ref))

    @rule(budget=st.sampled_from([16, 500, ALL]))
    def pump(self, budget: int) -> None:
        self.bench.residency.pump(budget)

    @rule()
    def serve(self) -> None:
        self.bench.desk.serve()

    @precondition(lambda self: self.refs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        _, ref = self.refs.pop(data.draw(st.integers(0, len(self.refs) - 1)))
        self.bench.residency.release(ref)

    @rule(digest=st.sampled_from(DIGESTS))
    def drain_for(self, digest: str) -> None:
        victims = self.bench.residency.victims_for(digest)
        for _, ref in [pair for pair in self.refs if pair[0] in victims]:
            self.bench.residency.release(ref)
        self.refs = [pair for pair in self.refs if pair[0] not in victims]

    @rule(digest=st.sampled_from(DIGESTS))
    def forget(self, digest: str) -> None:
        self.bench.residency.forget(digest)

    @rule(digest=st.sampled_from(DIGESTS), pinned=st.booleans())
    def pin(self, digest: str, pinned: bool) -> None:
        (self.bench.residency.pin if pinned else self.bench.residency.unpin)(digest)

    @invariant()
    def what_is_held_is_whole(self) -> None:
        bench = self.bench
        assert bench.residency.check() == ()
        for digest, ref in self.refs:
            assert bench.residency.valid(ref)
            assert_installed(bench.tables, ref.slot, plan(digest, bench.desk.ranks[digest]))
        slots = {ref.slot: digest for digest, ref in self.refs}
        assert len(slots) == len(set(slots.values()))


Life.TestCase.settings = histories(60, 40)
TestLife = Life.TestCase

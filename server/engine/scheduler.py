"""Which tokens the next step computes, and what becomes of a sequence from arrival to its one end.

Composes what others decide: whose turn it is (fairness), whose adapter is there (gate), which pages
it owns and need not compute (page_tables), when it is done (finish). Knows no tensors and no text.
"""

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from functools import partial
from itertools import chain
from operator import attrgetter

from weft.adapters.tenancy import TenantContext
from weft.server.engine.claims import Claims
from weft.server.engine.drafting import Drafting
from weft.server.engine.fairness import FairQueue
from weft.server.engine.finish import FinishRules
from weft.server.engine.gate import AdapterGate
from weft.server.engine.limits import Limits
from weft.server.engine.lookahead import Lookahead
from weft.server.engine.messages import Generate
from weft.server.engine.page_tables import PageTables
from weft.server.engine.prefix_cache import PrefixRoot
from weft.server.engine.refusal import refusal
from weft.server.engine.residency import Residency
from weft.server.engine.revival import revived
from weft.server.engine.sequence import Finish, Sequence, Status
from weft.server.engine.soundness import broken_claims
from weft.server.engine.step_plan import Scheduled, StepPlan

_arrival = attrgetter("arrival")
_ABORTED = Finish("abort")


class Scheduler:
    """Continuous batching over paged KV for many tenants and many adapters.

    In turn: `make_way`, `plan`, the model, `commit`; `add`, `abort` and `fail` between any two.
    While the model computes, `follow` may plan the next step, which then takes the place of `plan`.
    Each child of a request ends exactly once, whatever happens, and is then in `ended`, which
    whoever tells of it empties.
    """

    def __init__(
        self,
        limits: Limits,
        residency: Residency,
        prefix_root: PrefixRoot | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a `prefix_root` sequences share no pages. `clock`: seconds, monotonic."""
        self.limits = limits
        self.tables = PageTables(limits.num_pages, limits.page_size, prefix_root)
        self.drafting = Drafting(limits, self.tables, clock)
        self.preemptions = 0
        self._refusal = partial(refusal, limits=limits, tables=self.tables)
        self._finish = FinishRules(limits.eos_token_ids, limits.max_model_len)
        self._lookahead = Lookahead(self.tables, self.drafting, self._finish)
        self._clock = clock
        self._gate = AdapterGate(residency, limits.patience, clock)
        self._queue = FairQueue()
        self._running: list[Sequence] = []  # by arrival
        self._requests: dict[str, list[Sequence]] = {}  # live children by request id
        self._paused: set[str] = set()  # requests of which nothing more is to be computed now
        self.ended: list[Sequence] = []
        self._arrivals = 0

    @property
    def running(self) -> int:
        """Sequences that own pages."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Live sequences that do not run: for their turn, their adapter or their sibling."""
        return sum(map(len, self._requests.values())) - len(self._running)

    @property
    def awaited(self) -> int:
        """Live sequences that somebody reads."""
        paused = (seq for id_ in self._paused for seq in self._requests[id_])
        unread = sum(seq.status is Status.PAUSED for seq in paused)
        return sum(map(len, self._requests.values())) - unread

    @property
    def adapters(self) -> dict[str, int]:
        """Live sequences of each adapter version that has any."""
        return self._gate.demand

    @property
    def latest(self) -> Sequence | None:
        """The live sequence that arrived last."""
        return max(self._live, key=_arrival, default=None)

    @property
    def _live(self) -> list[Sequence]:
        return list(chain.from_iterable(self._requests.values()))

    # ---- arrival and end

    def add(self, request: Generate) -> None:
        """Takes a request in; one that can never be served ends at once. The id is a new one."""
        if request.id in self._requests:
            raise ValueError(f"request {request.id} is here already")
        first = self._arrivals
        self._arrivals += request.n
        arrived = self._clock()
        self._requests[request.id] = children = [
            Sequence(request, index, first + index, list(request.prompt), arrived=arrived)
            for index in range(request.n)
        ]
        for seq in children:
            self._gate.join(seq)
        if error := self._refusal(request, lead=0):
            self._end_all(children, Finish("error", error=error))
        else:
            shared = self.tables.reuses_prompts and request.sampling.prompt_logprobs is None
            self._start(children[:1] if shared else children)

    def abort(self, request_id: str, index: int | None = None, finish: Finish = _ABORTED) -> None:
        """Ends a request's children, or one of them, whatever they are doing."""
        children = self._requests.get(request_id, [])
        self._end_all([s for s in children if index in (None, s.index)], finish)

    def fail(self, seq: Sequence, code: str) -> None:
        """Ends one sequence with a code of the error catalogue."""
        self._end_all([seq], Finish("error", error=code))

    def reserve(self, tenants: Iterable[TenantContext]) -> None:
        """From now on each of these has its `kv_pages` for itself; others share what is left.

        What runs begins again with the pages that are found, and what cannot fit any more ends.
        """
        wanted = self.tables.parts(tenants)
        if wanted == self.tables.reserved:
            return
        for seq in tuple(self._running):
            self._preempt(seq)
        self.tables.reserve(wanted)
        unfit = [seq for seq in self._live if self._refusal(seq.request, seq.lead)]
        self._end_all(unfit, Finish("error", error="context_length_exceeded"))

    def pause(self, request_id: str, *, paused: bool) -> None:
        """Lets a request wait without pages until it is told to go on; it keeps its tokens."""
        children = self._requests.get(request_id, [])
        if not paused:
            self._paused.discard(request_id)
            self._start([seq for seq in children if seq.status is Status.PAUSED])
        elif children:
            self._paused.add(request_id)
            for seq in children:
                self._set_aside(seq)

    def begin_again(self, interrupted: Iterable[Scheduled]) -> None:
        """After an exception anywhere in here: all that live wait anew and hold nothing.

        interrupted: of the step whose tokens nobody has seen, so that they are taken back
        """
        self._requests, self.ended = revived(self._requests, self.ended, interrupted)
        self._paused &= self._requests.keys()
        self.tables.clear()
        self._queue.clear()
        self._gate = self._gate.renewed()
        self._running = []
        for seq in (live := sorted(self._live, key=_arrival)):
            seq.let_go()
            self._gate.join(seq)
        self._start(live)

    # ---- a step

    def make_way(self) -> None:
        """Before adapters move: those that had their turn give way to those that waited."""
        for demand in self._gate.give_way():
            for seq in demand.members.values():
                self._park(seq)

    def plan(self) -> StepPlan:
        """Chooses the next step: decodes first, then prefill by fair share within the budget.

        Before that, who holds more than its share of a full engine gives way to who holds less.
        """
        self._settle_adapters()
        self._let_claimants_in()
        decodes = self._decodes()
        budget = self.limits.max_num_batched_tokens - len(decodes)
        prefills = self._prefills(budget, paced=bool(decodes))
        rows = prefills + self.drafting.extend(decodes, alone=not prefills)
        return StepPlan(tuple(sorted(rows, key=attrgetter("order"))))

    def follow(self, plan: StepPlan) -> StepPlan:
        """The step after `plan`, which runs, as far as it does not depend on its tokens.

        Empty where it does, or where `plan` could let others in; see Lookahead.
        """
        self._settle_adapters()
        if self._queue and any(map(self._claims().lets_in, self._queue.firsts())):
            return StepPlan(())
        return self._lookahead.after(plan, self.running, others_wait=bool(self._queue))

    def commit(self, plan: StepPlan, runs: Items[Items[int]]) -> list[int]:
        """Records a step: `runs` holds the next tokens of each of `plan.sampling`, in order.

        Returns how many of these belong to the answer: none behind its end.
        """
        self.drafting.observe(plan, runs)
        sampled = iter(runs)
        counts = [self._advance(i, next(sampled) if i.samples else ()) for i in plan.items]
        return [n for n, item in zip(counts, plan.items, strict=True) if item.samples]

    def _settle_adapters(self) -> None:
        passage = self._gate.poll()
        for demand, code in passage.failed:
            self._end_all(list(demand.members.values()), Finish("error", error=code))
        for demand in passage.opened:
            self._start(s for s in demand.members.values() if s.status is Status.PARKED)

    def _let_claimants_in(self) -> None:
        """Lets the first of each tenant run that may have the place and pages of others."""
        if not self._queue or (claims := self._claims()).even:
            return
        for seq in self._queue.firsts():
            if victims := claims.victims(seq):
                for victim in victims:
                    self._preempt(victim)
                self._admit(seq)
                claims = self._claims()

    def _claims(self) -> Claims:
        return Claims(self._running, self.limits.max_num_seqs, self.tables, self._queue.served)

    def _decodes(self) -> list[Scheduled]:
        # One's growth may have preempted a later one, or an earlier one of another tenant.
        running = (seq for seq in tuple(self._running) if seq.status is Status.RUNNING)
        grown = [seq for seq in running if seq.remaining == 1 and self._grow(seq)]
        return [self._schedule(seq, 1) for seq in grown if seq.status is Status.RUNNING]

    def _prefills(self, budget: int, *, paced: bool) -> list[Scheduled]:
        """paced: whether paces count, so that all paced sequences together have one chunk."""
        rows: list[Scheduled] = []
        begun = [seq for seq in self._running if seq.remaining > 1]
        full: set[object] = set()

        def waits(seq: Sequence) -> bool:
            return paced and seq.is_paced and any(item.seq.is_paced for item in rows)

        def may_begin(seq: Sequence) -> bool:
            is_place = len(self._running) < self.limits.max_num_seqs
            return is_place and self.tables.crowd_of(seq) not in full and not waits(seq)

        while budget > 0 and (seq := self._queue.least_served(begun, may_begin)) is not None:
            if seq.status is Status.RUNNING:
                begun.remove(seq)
            elif not self._admit(seq):
                full.add(self.tables.crowd_of(seq))
                continue
            if not waits(seq):
                count = min(budget, seq.chunk if paced else seq.remaining)
                rows.append(self._schedule(seq, count))
                budget -= count
        return rows

    def _schedule(self, seq: Sequence, count: int) -> Scheduled:
        stop = seq.computed + count
        self._queue.charge(seq, stop)
        samples = stop == seq.length and seq.sampling.max_tokens > 0
        return Scheduled(seq, seq.computed, count, samples, copies=seq.uncopied)

    def _advance(self, item: Scheduled, run: Items[int]) -> int:
        seq = item.seq
        if seq.status is not Status.RUNNING:  # it ended while the step ran
            return 0
        count = self._finish.extend(seq, run)
        # What lies behind is of drafts that were wrong, and is computed again.
        computed = item.stop - len(item.drafts) + max(count - 1, 0)
        self._queue.charge(seq, computed)
        seq.computed, seq.uncopied = computed, 0
        self.tables.publish(seq)
        if item.start < seq.lead + seq.prompt_len <= seq.computed:
            self._start(s for s in self._requests[seq.request.id] if s.status is Status.HELD)
        if (count or not seq.remaining) and (finish := self._finish.finish_reason(seq)):
            self._end(seq, finish)
        return count

    # ---- from one status to another

    def _start(self, seqs: Iterable[Sequence]) -> None:
        """Lets sequences wait for their turn, or for their adapter."""
        for seq in list(seqs):
            if seq.status is Status.ENDED:  # with a sibling that was refused just now
                continue
            if seq.request.id in self._paused:
                seq.status = Status.PAUSED
            elif self._gate.passable(seq):
                self._enqueue(seq)
            else:
                seq.status = Status.PARKED

    def _enqueue(self, seq: Sequence) -> None:
        """Its adapters are there and say how long they make the sequence: too long, maybe."""
        try:
            seq.adopt(self._gate.traits(seq))
            error = self._refusal(seq.request, seq.lead)
        except ValueError:
            error = "invalid_parameter"
        if error:
            self._end_all([seq], Finish("error", error=error))
            return
        seq.status = Status.QUEUED
        self._queue.push(seq)

    def _admit(self, seq: Sequence) -> bool:
        """Lets the queue's choice run, if pages suffice and each running one can still grow."""
        if not self.tables.admit(seq):
            return False
        if seq.computed < seq.saved:
            self._gate.be_patient()
        self._queue.remove(seq)
        seq.shares = self._gate.shares(seq)
        seq.begin(self._clock(), self.limits.page_size)
        insort(self._running, seq, key=_arrival)
        return True

    def _grow(self, seq: Sequence) -> bool:
        """Makes room for the next token, if need be at the cost of others; see `gives_page`.

        Who is to give a page to itself waits, and keeps those it has: others can take them.
        """
        while not self.tables.grow(seq):
            victim = self._claims().gives_page(seq)
            if victim is seq:
                return False
            self._preempt(victim)
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Back to the queue: tokens are kept, and their KV while nobody needs the pages."""
        self._vacate(seq)
        seq.preemptions += 1
        self.preemptions += 1
        self._start([seq])

    def _set_aside(self, seq: Sequence) -> None:
        """Its reader is behind: what it holds is for others, and it is not preempted for them."""
        if seq.status is Status.RUNNING:
            self._vacate(seq)
        elif seq.status is Status.QUEUED:
            self._queue.remove(seq)
        else:
            return
        seq.status = Status.PAUSED

    def _park(self, seq: Sequence) -> None:
        """Its adapter left the device."""
        if seq.status is Status.RUNNING:
            self._preempt(seq)
        elif seq.status is Status.QUEUED:
            self._queue.remove(seq)
            seq.status = Status.PARKED

    def _vacate(self, seq: Sequence) -> None:
        del self._running[bisect_left(self._running, seq.arrival, key=_arrival)]
        self.tables.release(seq, keep=seq.status is not Status.ENDED)
        seq.shares = ()

    def _end(self, seq: Sequence, finish: Finish) -> None:
        """The one place where a sequence ends and gives up all it holds."""
        before, seq.status, seq.finish = seq.status, Status.ENDED, finish
        self.ended.append(seq)
        if before is Status.RUNNING:
            self._vacate(seq)
        elif before is Status.QUEUED:
            self._queue.remove(seq)
        self._gate.leave(seq)
        siblings = self._requests[seq.request.id]
        siblings.remove(seq)
        if not siblings:
            del self._requests[seq.request.id]
            self._paused.discard(seq.request.id)

    def _end_all(self, seqs: Iterable[Sequence], finish: Finish) -> None:
        """Ends those that live; where they held siblings back, one of these takes over."""
        live = [seq for seq in seqs if seq.status is not Status.ENDED]
        for seq in live:
            self._end(seq, finish)
        for request_id in dict.fromkeys(seq.request.id for seq in live):
            siblings = self._requests.get(request_id, [])
            if all(s.status is Status.HELD for s in siblings):
                self._start(siblings[:1])

    def check(self) -> tuple[str, ...]:
        """The broken invariants; empty when sound."""
        live = self._live
        return (
            *broken_claims(live, self._queue, self._running, self.limits.max_num_seqs),
            *self.tables.check(live),
            *self._gate.check(live),
        )

"""A scheduler's world without tensors: a clock, a residency, and a model that checks what it reads.

The model writes into each KV cell what a real one's KV depends on: tenant, adapter and every token
up to that position. Whatever a row attends to must be there.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from fake_residency import FakeResidency

from weft.adapters.blend import alone
from weft.adapters.tenancy import TenantContext
from weft.server.engine.limits import Limits
from weft.server.engine.messages import Generate, Sampling
from weft.server.engine.prefix_cache import PrefixRoot
from weft.server.engine.scheduler import Scheduler
from weft.server.engine.sequence import Finish, Sequence, Status
from weft.server.engine.step_plan import Scheduled, StepPlan

EOS = 0
ROOT = PrefixRoot(secret=b"secret", base_digest="base", kv_dtype="float32")


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def request(
    name: str,
    prompt: int | Iterable[int] = 4,
    max_tokens: int = 4,
    *,
    tenant: str = "tenant",
    weight: float = 1.0,
    adapter: str | None = None,
    n: int = 1,
    **sampling: object,
) -> Generate:
    """A request; a number as `prompt` stands for that many tokens of this request's own."""
    if isinstance(prompt, int):
        prompt = Random(name).choices(range(1, 1000), k=prompt)
    return Generate(
        id=name,
        tenant=TenantContext(tenant, weight),
        prompt=tuple(prompt),
        sampling=Sampling(max_tokens=max_tokens, **sampling),  # type: ignore[arg-type]
        blend=alone(adapter),
        n=n,
    )


def limits(**changes: object) -> Limits:
    """A tiny engine: 64 pages of 4 tokens."""
    tiny: dict[str, object] = {
        "num_pages": 65,
        "page_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
        "max_model_len": 128,
        "eos_token_ids": frozenset({EOS}),
        "patience": 1.0,
    }
    return Limits(**(tiny | changes))  # type: ignore[arg-type]


def shape(plan: StepPlan) -> list[tuple[str, int, int]]:
    """Request, first position and row count of each item."""
    return [(item.seq.request.id, item.start, item.count) for item in plan.items]


def adapters(slots: int = 2, count: int = 4, **how: int) -> FakeResidency:
    """A residency for `count` versions a0, a1, … of equal size, of which `slots` fit."""
    return FakeResidency(slots * 10, slots, {f"a{i}": 10 for i in range(count)}, **how)


def never_eos(seq: Sequence) -> int:
    """A model whose every answer goes on: its next token is the number of tokens so far."""
    return len(seq.tokens)


@dataclass(frozen=True)
class _Computed:
    """A step whose tokens the model has chosen: `runs` of each sequence that samples."""

    plan: StepPlan
    runs: dict[Sequence, list[int]]

    def of_those_that_run(self) -> "_Computed":
        running = (item for item in self.plan.items if item.seq.status is Status.RUNNING)
        return _Computed(StepPlan(tuple(running), self.plan.is_ahead), self.runs)


class World:
    """Steps a scheduler and asserts, in each step, all that must hold.

    Where it looks ahead, a step is computed before the tokens of the one before it are committed,
    as far as the scheduler plans it; what is committed then is what is still wanted of it.

    steps_ahead: how many of these there were   ended: how each child (request id, index) ended
    trace: what each step computed
    """

    def __init__(
        self,
        config: Limits | None = None,
        residency: FakeResidency | None = None,
        *,
        root: PrefixRoot | None = ROOT,
        next_token: Callable[[Sequence], int] = never_eos,
        step_seconds: Callable[[StepPlan], float] = lambda plan: 0.0,
        looks_ahead: bool = False,
    ) -> None:
        self.clock = Clock()
        self.residency = residency or FakeResidency(0, 0, {})
        self.scheduler = Scheduler(config or limits(), self.residency, root, self.clock)
        self.ended: dict[tuple[str, int], Finish] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.cached: dict[tuple[str, int], int] = {}
        self.trace: list[tuple[tuple[str, int, int, int], ...]] = []
        self._next_token = next_token
        self._step_seconds = step_seconds
        self._looks_ahead = looks_ahead
        self._ahead = _Computed(StepPlan(()), {})
        self.steps_ahead = 0
        self._cells: dict[tuple[int, int], int] = {}
        self._prefixes: dict[Sequence, list[int]] = {}

    def step(self, seconds: float = 0.01) -> StepPlan:
        """One step of the engine."""
        self.clock.now += seconds
        self.scheduler.make_way()
        self.residency.pump()
        computed = self._ahead if self._ahead.plan else self._computed(self.scheduler.plan(), {})
        self._ahead = _Computed(StepPlan(()), {})
        if self._looks_ahead and computed.plan:
            following = self.scheduler.follow(computed.plan)
            self._ahead = self._computed(following, computed.runs)
        plan = computed.plan
        self.clock.now += self._step_seconds(plan)
        runs = [computed.runs[item.seq] for item in plan.sampling]
        generated = [item.seq.generated for item in plan.sampling]
        taken = self.scheduler.commit(plan, runs)
        for item, run, before, count in zip(plan.sampling, runs, generated, taken, strict=True):
            assert item.seq.generated == before + count
            assert item.seq.tokens[item.seq.prompt_len + before :] == run[:count]
        self._ahead = self._ahead.of_those_that_run()
        self.trace.append(
            tuple((i.seq.request.id, i.seq.index, i.start, i.count) for i in plan.items)
        )
        self.settle()
        return plan

    def settle(self) -> None:
        """Takes in what ended, each child once, and checks the invariants."""
        ended, self.scheduler.ended = self.scheduler.ended, []
        for seq in ended:
            child = seq.request.id, seq.index
            assert child not in self.ended, f"{child} ended twice"
            assert seq.finish is not None
            self.ended[child] = seq.finish
            self.tokens[child] = seq.tokens[seq.prompt_len :]
            self.cached[child] = seq.cached_tokens
            self._prefixes.pop(seq, None)
        assert self.scheduler.check() == ()
        assert self.residency.pool.check() == ()

    def run(self, max_steps: int = 1000) -> int:
        """Steps until nothing lives; returns how many steps it took."""
        self.settle()
        steps = self.until(lambda: not self.live, max_steps=max_steps)
        self._check_rest()
        return steps

    def until(
        self,
        done: Callable[[], bool],
        seconds: float = 0.01,
        *,
        step: Callable[[float], object] | None = None,
        max_steps: int = 1000,
    ) -> int:
        """Steps (of so many seconds each) until `done`; returns how many steps it took."""
        for steps in range(max_steps):
            if done():
                return steps
            (step or self.step)(seconds)
        raise AssertionError(f"not done after {max_steps} steps")

    @property
    def live(self) -> int:
        """Children that have not ended."""
        return self.scheduler.running + self.scheduler.waiting

    def _computed(self, plan: StepPlan, before: Mapping[Sequence, list[int]]) -> "_Computed":
        """The step by the model; before: tokens that are not committed yet, each the row of one."""
        unread = {item.seq: before[item.seq] if plan.is_ahead else [] for item in plan.items}
        self.steps_ahead += bool(plan) and plan.is_ahead
        for seq, tokens in unread.items():
            seq.tokens += tokens
        try:
            self._check_plan(plan)
            self._compute(plan)
            runs = {item.seq: self._sample(item) for item in plan.sampling}
        finally:
            for seq, tokens in unread.items():
                del seq.tokens[len(seq.tokens) - len(tokens) :]
                del self._prefixes.get(seq, [])[seq.length :]
        return _Computed(plan, runs)

    def _check_plan(self, plan: StepPlan) -> None:
        config = self.scheduler.limits
        refs = [[share.ref for share in item.shares] for item in plan.items]
        order = [[(ref.place, ref.slot) for ref in shares] for shares in refs]
        assert order == sorted(order)
        assert len({item.seq for item in plan.items}) == len(plan.items) <= config.max_num_seqs
        assert plan.rows <= config.max_num_batched_tokens
        for item in plan.items:
            seq = item.seq
            assert item.count > 0
            assert item.start == (seq.length - 1 if plan.is_ahead else seq.computed)
            known = item.stop - len(item.drafts)
            assert item.samples == (known == seq.length and seq.sampling.max_tokens > 0)
            assert not item.drafts or (item.samples and known - item.start == 1)
            assert item.stop < config.max_model_len or not item.drafts
            assert seq.generated + len(item.drafts) < max(seq.sampling.max_tokens, 1)
            assert item.start >= seq.traits.prefix
            used = [(self.residency.computes(s.ref), s.weight) for s in seq.shares]
            assert sorted(used, key=str) == sorted(seq.blend, key=str)
            assert len(item.slots) == item.count
            base = [position < seq.base_until for position in range(item.start, item.stop)]
            assert all(
                slot == -1 for slot, of_base in zip(item.slots, base, strict=True) if of_base
            )

    def _sample(self, item: Scheduled) -> list[int]:
        """What the model answers to the item's last row, and to those of drafts that are right."""
        tokens = item.seq.tokens
        run = [self._next_token(item.seq)]
        for draft in item.drafts:
            if run[-1] != draft:
                break
            tokens.append(draft)
            run.append(self._next_token(item.seq))
        del tokens[len(tokens) - len(run) + 1 :]
        return run

    def _compute(self, plan: StepPlan) -> None:
        for item in plan.items:
            self._write(item)
        for item in plan.items:
            self._read(item)

    def _write(self, item: Scheduled) -> None:
        prefix = self._prefix(item.seq, item.drafts)
        for position in range(item.start - item.copies, item.stop):
            self._cells[self._cell(item.seq, position)] = prefix[position]

    def _read(self, item: Scheduled) -> None:
        prefix = self._prefix(item.seq, item.drafts)
        for position in range(item.start + item.count):
            assert self._cells[self._cell(item.seq, position)] == prefix[position]

    def _cell(self, seq: Sequence, position: int) -> tuple[int, int]:
        page, offset = divmod(position, self.scheduler.limits.page_size)
        assert seq.pages[page] > 0
        return seq.pages[page], offset

    def _prefix(self, seq: Sequence, drafts: tuple[int, ...]) -> list[int]:
        """For each position: a digest of all that its KV depends on."""
        prefix = self._prefixes.setdefault(seq, [])
        identities = [*range(-seq.lead, 0), *seq.tokens, *drafts]
        for position in range(len(prefix), len(identities)):
            before = prefix[-1] if prefix else hash(seq.tenant.id)
            blend = seq.blend if position >= seq.base_until else ()
            prefix.append(hash((before, identities[position], blend)))
        self._prefixes[seq] = prefix[: seq.length]
        return prefix

    def _check_rest(self) -> None:
        """Nothing is held where nothing lives."""
        tables = self.scheduler.tables
        assert tables.referenced == {}
        assert tables.free + tables.cached == tables.total
        assert self.scheduler.adapters == {}
        assert all(self.residency.pool.refs(d) == 0 for d in self.residency.pool.digests)

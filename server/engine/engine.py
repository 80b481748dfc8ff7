"""The engine: requests in, tokens out, one step at a time. Knows no sockets and no text.

Single-threaded; only the loader works beside it, mostly in a process of its own.
"""

import logging
import time
from collections.abc import Callable, Container

import torch

from weft.adapters.out_of_memory import is_out_of_memory
from weft.adapters.pool import Pool
from weft.adapters.presence import Presence
from weft.adapters.residency import Residency
from weft.server.engine.launcher import Flight, Launcher
from weft.server.engine.loader.launch import Loading
from weft.server.engine.loads import Loads
from weft.server.engine.messages import (
    Abort,
    AdapterState,
    Command,
    Done,
    EngineConfig,
    Event,
    Failed,
    Generate,
    Load,
    Loaded,
    Pause,
    Pin,
    Prefetch,
    Reserve,
    Stats,
    Tokens,
    Unload,
)
from weft.server.engine.model import ModelHost
from weft.server.engine.outbox import Outbox
from weft.server.engine.packed_ahead import PackedAhead
from weft.server.engine.parts import (
    info_of,
    is_async,
    limits_of,
    loader_of,
    prefix_root_of,
    versions_of,
)
from weft.server.engine.sampling import Sampled
from weft.server.engine.scheduler import Scheduler
from weft.server.engine.sequence import Finish, Status
from weft.server.engine.sequence import Sequence as Row
from weft.server.engine.step_plan import StepPlan
from weft.server.engine.weights import Progress

log = logging.getLogger(__name__)
COPY_BYTES_PER_STEP = 32 << 20
STATS_SECONDS = 0.1
CHECK_SECONDS = 10.0
SYNCHRONOUS_STEPS = 16
"""Launched one by one after a step ahead failed, or went on from a token that did not stand."""


class Engine:
    """One base model, its KV cache, its adapters, and the requests that they answer."""

    def __init__(
        self,
        model: ModelHost,
        config: EngineConfig,
        clock: Callable[[], float] = time.monotonic,
        loading: Loading | None = None,
    ) -> None:
        """loading: the process that is to load versions; without it a thread of this one does."""
        facts = model.facts
        self.info = info_of(facts)
        self.versions = versions_of(model, config, loading)
        self._loader = loader_of(model, self.versions, config)
        self.residency = Residency(
            Pool(facts.adapter_bytes, facts.slots), model.arena, self._loader
        )
        self.scheduler = Scheduler(
            limits_of(facts, config), self.residency, prefix_root_of(facts, config), clock
        )
        self._clock = clock
        self._outbox = Outbox()
        self._loads = Loads(model.canary)
        self._launcher = Launcher(model, self.residency, self._loads, self._outbox, config.seed)
        self._is_async = is_async(facts, config)
        self._ahead: Flight | None = None  # runs, and is the next step
        self._synchronous = 0  # steps that still go without launching another one ahead
        self._steps = self._failed_steps = 0
        self._plan = StepPlan(())
        self._stats_due = self._check_due = 0.0
        self._broken: tuple[str, ...] = ()
        for request in self._loads.base():
            self.scheduler.add(request)
            while self.busy:
                self.step()

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        progress: Progress,
        loading: Loading | None = None,
        ahead: PackedAhead | None = None,
    ) -> "Engine":
        """Loads the model and gets ready to serve; raises ModelUnsupported."""
        return cls(ModelHost.load(config, progress, ahead), config, loading=loading)

    @property
    def busy(self) -> bool:
        """Whether a step would do something, or something is awaited that a step must look for."""
        return self.scheduler.awaited > 0 or self.residency.expecting

    def handle(self, command: Command) -> None:
        """Takes a command in; its answer comes with the events of a step.

        Where that fails for want of memory, or by a fault of ours, only this command fails.
        """
        try:
            self._take(command)
        except Exception as error:  # noqa: BLE001 - it is told, or raised again
            self._begin_again(error)
            self._give_up(command, _code(error))

    def step(self) -> bool:
        """Moves adapters, computes one step and publishes it; returns whether it computed any.

        A step that fails anywhere is as if it had never begun. If the next one fails as well, the
        latest sequence is to blame, and ends.
        """
        mark = self._outbox.mark
        try:
            self._step()
            self._failed_steps = 0
        except torch.AcceleratorError:
            raise  # the device is lost: only a new process helps
        except Exception as error:
            self._outbox.revert(mark)
            self._begin_again(error)
            self._failed_steps += 1
            if self._failed_steps > 1:
                if (latest := self.scheduler.latest) is None:
                    raise
                self.scheduler.fail(latest, _code(error))
        computed, self._plan = bool(self._plan), StepPlan(())
        return computed

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        try:
            self._report()
        except Exception:
            log.exception("no report this time")
        return self._outbox.take()

    def close(self) -> None:
        """Ends the loader's process and threads; call it last."""
        self.versions.close()
        self._loader.close()

    def check(self) -> tuple[str, ...]:
        """The broken invariants; empty when sound."""
        return self.scheduler.check() + self.residency.check()

    def _take(self, command: Command) -> None:
        match command:
            case Generate():
                self.scheduler.add(command)
            case Abort():
                self.scheduler.abort(self._loads.canary_of(command.id), command.index)
            case Pause():
                self.scheduler.pause(command.id, paused=command.paused)
            case Load():
                self.residency.retry(command.digest)
                self.residency.ensure(command.digest, command.tenant)  # the canary is nobody's
                self.scheduler.add(self._loads.start(command))
            case Prefetch():
                self.residency.prefetch(command.digest, command.tenant)
                self._outbox.put(Done(command.id))
            case Pin():
                (self.residency.pin if command.pinned else self.residency.unpin)(command.digest)
                self._outbox.put(Done(command.id))
            case Reserve():
                self.scheduler.reserve(command.tenants)
            case Unload():
                self.residency.forget(command.digest)
                self._outbox.put(Done(command.id))

    # ---- after a failure

    def _begin_again(self, error: Exception) -> None:
        """Makes everything sound after an exception anywhere; raises it again where that fails.

        Live sequences keep their tokens and versions their places; KV is computed again.
        """
        log.error("all that runs begins again", exc_info=error)
        self._ahead = None
        self.residency.begin_again()
        self.scheduler.begin_again(self._plan.items)
        if broken := self.check():
            raise RuntimeError(f"not sound: {', '.join(broken)}") from error

    def _give_up(self, command: Command, code: str) -> None:
        """Answers a command that could not be taken in; those without an answer are tried again."""
        match command:
            case Generate():
                self._end(command, code)
            case Load() | Prefetch() | Pin() | Unload():
                self.scheduler.abort(self._loads.canary_of(command.id))
                self._outbox.put(Failed(command.id, code, "adapter", "could not be done"))
            case _:
                self._take(command)

    def _end(self, request: Generate, code: str) -> None:
        """Ends all of a request's children, also where the scheduler has not heard of them."""
        self.scheduler.abort(request.id, finish=Finish("error", error=code))
        if all(seq.request.id != request.id for seq in self.scheduler.ended):
            for index in range(request.n):
                self._outbox.put(Tokens(id=request.id, index=index, finish="error", error=code))

    # ---- a step

    def _step(self) -> None:
        self.scheduler.make_way()
        self.residency.pump(COPY_BYTES_PER_STEP)
        ahead, self._ahead = self._ahead, None
        self._plan = ahead.plan if ahead else self.scheduler.plan()
        flights = [ahead] if ahead else self._launch(self._plan)
        following = self._look_ahead(flights)
        sampled: dict[Row, list[Sampled]] = {}
        for flight in flights:
            sampled |= self._commit(flight)
        if following:
            foreseen = {seq for seq, run in sampled.items() if all(c.foreseen for c in run)}
            self._go_on(following, foreseen)
        self._publish(sampled)

    def _launch(self, plan: StepPlan) -> list[Flight]:
        """Launches a plan; a failure ends only the sequences that fail on their own."""
        if not plan:
            return []
        self._steps += 1
        try:
            return [self._launcher.launch(plan)]
        except torch.AcceleratorError:
            raise  # the device is lost: only a new process helps
        except Exception as error:
            if len(plan.items) == 1 and not plan.items[0].drafts:
                log.exception("a step failed")
                self.scheduler.fail(plan.items[0].seq, _code(error))
                return []
            alone = (self._launch(StepPlan((item.plain,))) for item in plan.items)
            return [flight for flights in alone for flight in flights]

    def _look_ahead(self, flights: list[Flight]) -> Flight | None:
        """Launches the step after the one that runs, if that can be without its tokens."""
        self._synchronous -= 1
        if not self._is_async or self._synchronous >= 0 or len(flights) != 1:
            return None
        plan = self.scheduler.follow(flights[0].plan)
        if not plan:
            return None
        try:
            flight = self._launcher.launch(plan, flights[0])
        except torch.AcceleratorError:
            raise  # the device is lost: only a new process helps
        except Exception:
            log.exception("a step could not be launched ahead")
            self._synchronous = SYNCHRONOUS_STEPS
            return None
        self._steps += 1
        return flight

    def _go_on(self, flight: Flight, foreseen: Container[Row]) -> None:
        """Counts on a step that was launched ahead, for those that live and got what it was given.

        foreseen: whose tokens are what the device had
        """
        running = {item.seq for item in flight.plan.items if item.seq.status is Status.RUNNING}
        flight.keep(lambda seq: seq in running and seq in foreseen)
        if any(seq not in foreseen for seq in running):
            self._synchronous = SYNCHRONOUS_STEPS
        self._ahead = flight if flight.plan else None

    def _commit(self, flight: Flight) -> dict[Row, list[Sampled]]:
        """Reads a step's tokens and records them; returns those of each sequence's answer."""
        sampled = flight.read()
        for seq, run in sampled.items():
            if run[0].error is not None:
                log.error("request %s: %s", seq.request.id, run[0].error)
                self.scheduler.fail(seq, "internal_error")
        tokens = [[choice.token for choice in run] for run in sampled.values()]
        taken = self.scheduler.commit(flight.plan, tokens)
        return {seq: run[:n] for (seq, run), n in zip(sampled.items(), taken, strict=True)}

    # ---- what others hear of

    def _publish(self, sampled: dict[Row, list[Sampled]]) -> None:
        ended = tuple(self.scheduler.ended)
        canaries = [seq for seq in ended if seq.request.id in self._loads]
        for seq in canaries:
            sampled.pop(seq, None)
            self._answer_load(seq)
        self._outbox.publish(sampled, [seq for seq in ended if seq not in canaries])
        self.scheduler.ended.clear()
        for seq in canaries:
            self._loads.forget(seq.request.id)

    def _answer_load(self, seq: Row) -> None:
        if not seq.blend:
            return
        ((digest, _),) = seq.blend
        answer = self._loads.finish(seq, self.versions.card(digest), self._failure(seq, digest))
        self._outbox.put(answer)
        log.debug("%s", _told(answer, digest))
        if isinstance(answer, Failed) and not _given_up(seq):
            self.residency.forget(digest)
            self.versions.forget(digest)

    def _failure(self, seq: Row, digest: str) -> Exception | None:
        """Why the version did not come to the device, if that is what ended its canary."""
        if seq.finish is None or seq.finish.reason != "error":
            return None
        failed = self.residency.ensure(digest) is Presence.FAILED
        return self.residency.error(digest) if failed else None

    def _report(self) -> None:
        now = self._clock()
        if now < self._stats_due:
            return
        self._stats_due = now + STATS_SECONDS
        if now >= self._check_due:
            self._check_due = now + CHECK_SECONDS
            self._broken = self.check()
        self._outbox.put(self._stats())

    def _stats(self) -> Stats:
        scheduler, residency, tables = self.scheduler, self.residency, self.scheduler.tables
        live = scheduler.adapters
        return Stats(
            steps=self._steps,
            running=scheduler.running,
            waiting=scheduler.waiting,
            free_pages=tables.free,
            cached_pages=tables.cached,
            total_pages=tables.total,
            prefix_hits=tables.prefix_hits,
            prefix_queries=tables.prefix_queries,
            preemptions=scheduler.preemptions,
            drafted=scheduler.drafting.drafted,
            accepted=scheduler.drafting.accepted,
            evictions=residency.evictions,
            evicted=residency.take_evicted(),
            loads=residency.loads,
            load_seconds=residency.load_seconds,
            broken_invariants=self._broken,
            adapters=tuple(
                AdapterState(s.digest, s.tier, live.get(s.digest, 0), s.bytes, s.pinned)
                for s in residency.states()
            ),
        )


def _given_up(seq: Row) -> bool:
    return seq.finish is not None and seq.finish.reason == "abort"


def _told(answer: Loaded | Failed, digest: str) -> str:
    """What became of a load, in a line for the log."""
    if isinstance(answer, Failed):
        return f"version {digest[:12]} was refused: {answer.where}: {answer.reason}"
    report = answer.report
    return (
        f"version {digest[:12]} is ready after {report.load_seconds:.2f} s: {report.method}, "
        f"rank {report.rank}, {report.bytes} bytes"
    )


def _code(error: Exception) -> str:
    return "out_of_memory" if is_out_of_memory(error) else "internal_error"

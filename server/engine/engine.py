"""The engine: requests in, tokens out, one step at a time. Knows no sockets and no text.

Single-threaded; only the loader works beside it, mostly in a process of its own.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from weft.adapters.base_outline import BaseOutline
from weft.adapters.loader import Loader
from weft.adapters.out_of_memory import is_out_of_memory
from weft.adapters.pool import Pool
from weft.adapters.presence import Presence
from weft.adapters.residency import PLACES, Residency
from weft.adapters.store import Store
from weft.server.engine import hardware
from weft.server.engine.batch import StepBatch
from weft.server.engine.limits import Limits
from weft.server.engine.loader.client import LoaderProcess
from weft.server.engine.loader.launch import Loading
from weft.server.engine.loader.messages import LoaderConfig
from weft.server.engine.loads import Loads
from weft.server.engine.messages import (
    Abort,
    AdapterState,
    Command,
    Done,
    EngineConfig,
    EngineInfo,
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
    Unload,
)
from weft.server.engine.model import ModelFacts, ModelHost
from weft.server.engine.outbox import Outbox
from weft.server.engine.prefix_cache import PrefixRoot
from weft.server.engine.sampling import Sampled, SampleRow, accepted, sample, token_logprobs
from weft.server.engine.scheduler import Scheduler
from weft.server.engine.sequence import Sequence as Row
from weft.server.engine.step_plan import Scheduled, StepPlan
from weft.server.engine.versions import Versions
from weft.server.engine.weights import Progress

log = logging.getLogger(__name__)
COPY_BYTES_PER_STEP = 32 << 20
LEAST_LOADER_MEMORY = 256 << 20
STATS_SECONDS = 0.1
CHECK_SECONDS = 10.0


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
        self.info = _info(facts)
        self.versions = _versions(model, config, loading)
        self._loader = _loader(model, self.versions, config)
        self.residency = Residency(
            Pool(facts.adapter_bytes, facts.slots), model.arena, self._loader
        )
        self.scheduler = Scheduler(
            _limits(facts, config), self.residency, _prefix_root(facts, config), clock
        )
        self._model = model
        self._seed = config.seed
        self._clock = clock
        self._outbox = Outbox()
        self._loads = Loads(model.canary)
        self._steps = 0
        self._stats_due = self._check_due = 0.0
        self._broken: tuple[str, ...] = ()
        self.scheduler.add(self._loads.base())
        while self.busy:
            self.step()

    @classmethod
    def load(
        cls, config: EngineConfig, progress: Progress, loading: Loading | None = None
    ) -> "Engine":
        """Loads the model and gets ready to serve; raises ModelUnsupported."""
        return cls(ModelHost.load(config, progress), config, loading=loading)

    @property
    def busy(self) -> bool:
        """Whether a step would do something, or something is awaited that a step must look for."""
        return self.scheduler.awaited > 0 or self.residency.expecting

    def handle(self, command: Command) -> None:
        """Takes a command in; its answer comes with the events of a step."""
        match command:
            case Generate():
                self.scheduler.add(command)
            case Abort():
                self.scheduler.abort(self._loads.canary_of(command.id), command.index)
            case Pause():
                self.scheduler.pause(command.id, paused=command.paused)
            case Load():
                self.residency.retry(command.digest)
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

    def step(self) -> bool:
        """Moves adapters, computes one step and publishes it; returns whether it computed any."""
        self.residency.pump(COPY_BYTES_PER_STEP)
        plan = self.scheduler.plan()
        sampled = self._compute(plan) if plan else {}
        self._publish(sampled)
        return bool(plan)

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        self._report()
        return self._outbox.take()

    def close(self) -> None:
        """Ends the loader's process and threads; call it last."""
        self.versions.close()
        self._loader.close()

    def check(self) -> tuple[str, ...]:
        """The broken invariants; empty when sound."""
        return self.scheduler.check() + self.residency.check()

    # ---- a step

    def _compute(self, plan: StepPlan) -> dict[Row, list[Sampled]]:
        """Runs a plan and commits it; a failure ends only the sequences that fail on their own."""
        self._steps += 1
        try:
            self._model.place(plan)
            sampled = self._run(plan)
        except torch.AcceleratorError:
            raise  # the device is lost: only a new process helps
        except Exception as error:
            if len(plan.items) == 1 and not plan.items[0].drafts:
                log.exception("a step failed")
                self.scheduler.fail(plan.items[0].seq, _code(error))
                return {}
            alone = (self._compute(StepPlan((item.plain,))) for item in plan.items)
            return {seq: run for runs in alone for seq, run in runs.items()}
        for seq, run in sampled.items():
            if run[0].error is not None:
                log.error("request %s: %s", seq.request.id, run[0].error)
                self.scheduler.fail(seq, "internal_error")
        tokens = [[choice.token for choice in run] for run in sampled.values()]
        taken = self.scheduler.commit(plan, tokens)
        return {seq: run[:n] for (seq, run), n in zip(sampled.items(), taken, strict=True)}

    def _run(self, plan: StepPlan) -> dict[Row, list[Sampled]]:
        for item in plan.items:
            for share in item.seq.shares:
                if not self.residency.valid(share.ref):
                    raise RuntimeError(f"{share.ref} was given to another version")
        batch = self._model.build(plan)
        logits = self._model.run(batch)
        self._keep_prompts(batch, logits)
        chosen = logits[list(batch.sampling)] if batch.prompts else logits
        rows = [row for item in plan.sampling for row in self._sample_rows(item)]
        choices = iter(sample(chosen, rows))
        runs: dict[Row, list[Sampled]] = {}
        first = 0
        for item in plan.sampling:
            if item.seq.request.id in self._loads:
                self._loads.observe(item.seq.request.id, chosen[first])
            count = 1 + len(item.drafts)
            runs[item.seq] = accepted(list(islice(choices, count)), item.drafts)
            first += count
        return runs

    def _sample_rows(self, item: Scheduled) -> Iterator[SampleRow]:
        """Its last row, and each draft's as if the drafts were part of the answer."""
        seq, seed, ends = item.seq, self._row_seed(item.seq), self.info.eos_token_ids
        for known in range(1 + len(item.drafts)):
            tokens = [*seq.tokens, *item.drafts[:known]] if known else seq.tokens
            yield SampleRow(seq.sampling, tokens, seq.prompt_len, seed, ends)

    def _row_seed(self, seq: Row) -> int:
        """The request's seed, another one for each further child; without one, the engine's own."""
        seed = seq.sampling.seed
        if seed is None:
            return _mix(self._seed, seq.arrival)
        return seed if seq.index == 0 else _mix(seed, seq.index)

    def _keep_prompts(self, batch: StepBatch, logits: Tensor) -> None:
        for prompt in batch.prompts:
            count = prompt.rows.stop - prompt.rows.start
            tokens = prompt.seq.tokens[prompt.position : prompt.position + count]
            top = prompt.seq.sampling.prompt_logprobs or 0
            found = token_logprobs(logits[prompt.rows], tokens, [top] * count)
            self._outbox.add_prompt(prompt.seq, prompt.position, found)

    # ---- what others hear of

    def _publish(self, sampled: dict[Row, list[Sampled]]) -> None:
        ended = self.scheduler.take_ended()
        canaries = [seq for seq in ended if seq.request.id in self._loads]
        for seq in canaries:
            sampled.pop(seq, None)
            self._answer_load(seq)
        self._outbox.publish(sampled, [seq for seq in ended if seq not in canaries])

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


def _limits(facts: ModelFacts, config: EngineConfig) -> Limits:
    return Limits(
        num_pages=facts.pages,
        page_size=facts.page_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=facts.max_num_batched_tokens,
        max_model_len=facts.max_model_len,
        eos_token_ids=frozenset(facts.eos_token_ids),
        patience=config.patience,
        speculation=config.speculation == "ngram",
    )


def _versions(
    model: ModelHost, config: EngineConfig, loading: Loading | None
) -> Versions | LoaderProcess:
    names = config.base_names or (model.folder.name,)
    dtype = model.arena.values.dtype
    pin_memory = model.facts.device.type == "cuda"
    if loading is None:
        return Versions(Store(Path(config.store)), model.base, names, dtype, pin_memory=pin_memory)
    memory = config.loader_memory or hardware.free_memory(torch.device("cpu")) // 2
    described = LoaderConfig(
        store=config.store,
        model=str(model.folder),
        base_names=names,
        base=BaseOutline.of(model.base),
        dtype=str(dtype).removeprefix("torch."),
        memory=max(memory, LEAST_LOADER_MEMORY),
        seconds=config.loader_timeout,
    )
    return LoaderProcess(described, model.base, loading, pin_memory=pin_memory)


def _loader(model: ModelHost, versions: Versions | LoaderProcess, config: EngineConfig) -> Loader:
    host_bytes = config.adapter_host_memory
    return Loader(
        versions.load,
        capacity=2 * model.facts.adapter_bytes if host_bytes is None else host_bytes,
        threads=1 if isinstance(versions, Versions) else PLACES,
        give_up=versions.give_up,
    )


def _prefix_root(facts: ModelFacts, config: EngineConfig) -> PrefixRoot | None:
    if not config.prefix_caching:
        return None
    secret = config.prefix_secret or secrets.token_bytes(32)
    return PrefixRoot(secret, facts.digest, str(facts.dtype))


def _info(facts: ModelFacts) -> EngineInfo:
    return EngineInfo(
        model_digest=facts.digest,
        device=str(facts.device),
        dtype=str(facts.dtype).removeprefix("torch."),
        quantization=facts.quantization,
        parameters=facts.parameters,
        weight_bytes=facts.weight_bytes,
        vocab_size=facts.vocab_size,
        eos_token_ids=facts.eos_token_ids,
        max_model_len=facts.max_model_len,
        page_size=facts.page_size,
        pages=facts.pages - 1,
        adapter_bytes=facts.adapter_bytes,
        slots=facts.slots,
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


def _mix(seed: int, number: int) -> int:
    """A seed that depends on both, and on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest())


def _code(error: Exception) -> str:
    return "out_of_memory" if is_out_of_memory(error) else "internal_error"

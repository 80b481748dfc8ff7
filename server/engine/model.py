"""The base model on its device, ready to compute steps: weights, KV cache, adapter arena.

Knows no requests and no scheduling: a plan goes in, logits come out.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from weft.adapters.arena import Arena
from weft.adapters.base import BaseModules
from weft.adapters.modules import adapt
from weft.adapters.out_of_memory import is_out_of_memory
from weft.kernels.low_rank import arena_dtype
from weft.server.engine import half_weight, hardware, probe, quantization, weights
from weft.server.engine.attention import AttentionStep, use_paged_attention
from weft.server.engine.base_digest import digest_files, digest_random
from weft.server.engine.batch import StepBatch
from weft.server.engine.canary import Canary, canary_of
from weft.server.engine.checks import check_config, position_limit
from weft.server.engine.compiled import compile_decoder
from weft.server.engine.decode_capture import capture_bytes, captured_decodes
from weft.server.engine.decode_graphs import DecodeGraphs
from weft.server.engine.forward import Forward
from weft.server.engine.hardware import GIB
from weft.server.engine.kv_memory import KVLayout, KVSize, choose_size
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.messages import EngineConfig
from weft.server.engine.packed_ahead import PackedAhead
from weft.server.engine.packed_linear import begin_packing
from weft.server.engine.prefixes import PrefixCopies
from weft.server.engine.quantization import Quantization
from weft.server.engine.self_test import Reference, SelfTest, check_model, computed, twin
from weft.server.engine.step_plan import Scheduled, StepPlan
from weft.server.engine.stored_weights import stored_dtype
from weft.server.engine.unsupported import ModelTooLarge, ModelUnsupported
from weft.server.engine.weights import Progress

log = logging.getLogger(__name__)
SLOTS = 1024
_THREADS = 3  # beside the one that loads: to read files, to test, and to pack layers
_DEFAULT_BUDGET = {"cpu": 512, "cuda": 2048}
_ADAPTER_SHARE = 0.1
_LARGEST_DEFAULT_ARENA = 4 * GIB


@dataclass(frozen=True)
class ModelFacts:
    """What is served, as far as the model decides it.

    pages: of the KV cache, page 0 for padding included   adapter_bytes: of the adapters' arena
    quantization: of the linear layers, or as the files had it; or "none"
    weight_bytes: of the weights as they are stored
    """

    digest: str
    device: torch.device
    dtype: torch.dtype
    quantization: str
    parameters: int
    weight_bytes: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    max_num_batched_tokens: int
    page_size: int
    pages: int
    adapter_bytes: int
    slots: int


@dataclass(frozen=True, eq=False)
class ModelHost:
    """One base model and the memory that its steps need. Used by one thread.

    base: the modules that adapters may target   arena: the adapters' memory on the device
    folder: of its files   canary: what versions are compared with the base on
    decodes: what computes steps in place of `forward`, where decode steps are captured
    """

    facts: ModelFacts
    base: BaseModules
    arena: Arena
    forward: Forward
    prefixes: PrefixCopies
    folder: Path
    canary: Canary
    decodes: DecodeGraphs | None

    @classmethod
    def load(
        cls, config: EngineConfig, progress: Progress, ahead: PackedAhead | None = None
    ) -> "ModelHost":
        """Reads, checks and tests the model that `config` names, and takes the memory for it.

        `progress` hears of each stage; `ahead` is used up. Raises ModelUnsupported, whose message
        says what to change.
        """
        torch.set_num_threads(config.threads or hardware.default_threads())
        source = _Source.find(config)
        with _Beside.begin(source, config, ahead or PackedAhead()) as beside:
            with _memory("the model's weights: choose a smaller --dtype or model"):
                model = source.load(config, progress)
            return _assemble(config, source, model, progress, beside)

    def place(self, plan: StepPlan) -> None:
        """Puts what the adapters bring into the cache, as the plan says; see PrefixCopies."""
        self.prefixes.place(plan)

    def keep(self, item: Scheduled) -> None:
        """Keeps the KV of what was just computed, for requests that begin with it."""
        self.prefixes.keep(item)

    def build(self, plan: StepPlan, ids: Tensor | None = None) -> StepBatch:
        """See Forward.build."""
        return self.forward.build(plan, ids)

    def run(self, batch: StepBatch) -> Tensor:
        """One forward; see Forward.run."""
        return (self.decodes or self.forward).run(batch)


@dataclass(frozen=True)
class _Source:
    """Where the model comes from, and what it becomes."""

    folder: Path
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    quantized: Quantization | None

    @classmethod
    def find(cls, wanted: EngineConfig) -> "_Source":
        """Finds the model and checks all that can be told before weights are read."""
        folder = weights.find_model(wanted.model)
        config = weights.read_config(folder)
        check_config(config, wanted.max_model_len)
        device = hardware.choose_device(wanted.device)
        dtype = hardware.choose_dtype(wanted.dtype, device, weights.count_parameters(config))
        quantized = Quantization.choose(wanted.quantization, config, dtype)
        source = cls(folder, config, device, dtype, quantized)
        source._require_memory()
        return source

    def load(self, wanted: EngineConfig, progress: Progress) -> PreTrainedModel:
        if self.quantized is not None and self.quantized.is_undone:
            log.info(
                "the weights are stored as %s and served in %s", self.quantized.name, self.dtype
            )
        if wanted.load_format == "dummy":
            return weights.random_weights(
                self.config,
                dtype=self.dtype,
                device=self.device,
                seed=wanted.seed,
                quantized=self.quantized,
            )
        return weights.load_weights(
            self.folder,
            self.config,
            dtype=self.dtype,
            device=self.device,
            progress=progress,
            quantized=self.quantized,
            stored=self.stored,
        )

    @property
    def stored(self) -> torch.dtype | None:
        """The dtype of the files, if large weights are to be left in them and packed from there."""
        is_widened = self.device.type == "cpu" and self.dtype == torch.float32
        return stored_dtype(self.folder) if is_widened and self.quantized is None else None

    def _require_memory(self) -> None:
        """Raises ModelTooLarge where the weights will not fit."""
        packed = self.stored if half_weight.is_available() else None
        skeleton = weights.skeleton(self.config)
        needed = quantization.expected_bytes(skeleton, self.dtype, self.quantized, packed)
        free = hardware.free_memory(self.device)
        if needed > free:
            kind = self.dtype if self.quantized is None else self.quantized.name
            raise ModelTooLarge(
                f"the weights need {needed / GIB:.1f} GiB as {kind}, and {self.device} has "
                f"{free / GIB:.1f} GiB free: choose a smaller --dtype or model, or --quantization"
            )

    def digest(self, wanted: EngineConfig) -> str:
        if wanted.load_format == "dummy":
            digest = digest_random(self.folder, wanted.seed)
        else:
            digest = digest_files(self.folder, Path(wanted.store))
        return digest if self.quantized is None else self.quantized.digest(digest)

    @property
    def vocabulary(self) -> int:
        size: int = self.config.get_text_config().vocab_size
        return size


@dataclass(frozen=True)
class _Beside:
    """What other threads do while the weights are read and the model is tested."""

    threads: Executor
    digest: Future[str]
    canary: Future[Canary]
    ahead: PackedAhead

    @classmethod
    @contextmanager
    def begin(
        cls, source: _Source, wanted: EngineConfig, ahead: PackedAhead
    ) -> "Iterator[_Beside]":
        """Reads the files beside the weights; a start that fails waits for nothing of it."""
        threads = ThreadPoolExecutor(
            _THREADS, "start", torch.set_num_threads, (torch.get_num_threads(),)
        )
        digest = threads.submit(source.digest, wanted)
        canary = threads.submit(canary_of, source.folder, source.vocabulary)
        ahead.go_on(threads)
        try:
            yield cls(threads, digest, canary, ahead)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def reference(
        self, model: PreTrainedModel, test: SelfTest, source: _Source
    ) -> Future[Reference]:
        """What transformers computes of the test, while this thread computes it too.

        Of quantised layers no second ones are made: with them it comes first.
        """
        if source.quantized is None:
            return self.threads.submit(Reference.of, twin(model), test)
        found: Future[Reference] = Future()
        found.set_result(Reference.of(model, test))
        use_paged_attention(model)
        return found


def _assemble(
    wanted: EngineConfig,
    source: _Source,
    model: PreTrainedModel,
    progress: Progress,
    beside: _Beside,
) -> ModelHost:
    """Wraps the loaded model, tests it, and takes the memory for adapters and the KV cache."""
    ends = beside.threads.submit(weights.end_tokens, source.folder, model)
    finish_packing = begin_packing(model, beside.threads, beside.ahead)
    weight_bytes = quantization.weight_bytes(model)
    weights.spare_padding_checks(model)
    use_paged_attention(model)
    spec = KVSpec.discover(model)
    layout = KVLayout(spec, wanted.page_size, source.dtype, source.device)
    longest = _context_length(wanted, source.config)
    test = SelfTest.design(
        window=spec.longest_window,
        max_model_len=longest,
        vocabulary=source.vocabulary,
        page_size=wanted.page_size,
    )
    progress("self-test", 0, 2)
    reference = beside.reference(model, test, source)
    finish_packing()
    base = BaseModules.of(model, spec.refused, spec.shapes)
    with _memory("the adapters: lower --adapter-memory"):
        values = _arena(wanted, source)
    adapted = adapt(model, base, spec.layouts, values, SLOTS)
    arena, attention = Arena(values, adapted.tables), AttentionStep()
    forward = Forward(model, attention, adapted.state, wanted.page_size)
    prefixes = PrefixCopies(spec, adapted.tables, wanted.page_size)
    layout.allocate(test.pages, attention)
    if wanted.compile:
        compile_decoder(forward, test, progress)
    _check(forward, test, reference, progress)
    budget = _token_budget(wanted, longest, source.device)
    with _memory("the KV cache: lower --kv-cache-memory or --max-num-batched-tokens"):
        size = _kv_size(forward, arena, layout, wanted, longest, budget)
        layout.allocate(size.pages, attention)
    decodes = captured_decodes(forward, arena, wanted, size.max_model_len, progress)
    progress("digest", 0, 1)
    facts = ModelFacts(
        digest=beside.digest.result(),
        device=source.device,
        dtype=source.dtype,
        quantization=source.quantized.told if source.quantized else "none",
        parameters=base.parameters,
        weight_bytes=weight_bytes,
        vocab_size=source.vocabulary,
        eos_token_ids=ends.result(),
        max_model_len=size.max_model_len,
        max_num_batched_tokens=budget,
        page_size=wanted.page_size,
        pages=size.pages,
        adapter_bytes=arena.values.nbytes,
        slots=SLOTS,
    )
    canary = beside.canary.result()
    return ModelHost(facts, base, arena, forward, prefixes, source.folder, canary, decodes)


def _context_length(wanted: EngineConfig, config: PreTrainedConfig) -> int:
    longest = wanted.max_model_len or position_limit(config)
    if longest is None:
        raise ModelUnsupported("the model does not say how long its context is: --max-model-len")
    return longest


def _token_budget(wanted: EngineConfig, longest: int, device: torch.device) -> int:
    """Rows in a step: each running sequence decodes in it, and none is longer than the context."""
    most = wanted.max_num_seqs * longest
    budget = wanted.max_num_batched_tokens or min(_DEFAULT_BUDGET[device.type], most)
    return max(budget, wanted.max_num_seqs)


def _arena(wanted: EngineConfig, source: _Source) -> Tensor:
    """The adapters' memory."""
    dtype = arena_dtype(source.device, source.dtype)
    size = wanted.adapter_memory
    if size is None:
        share = int(hardware.free_memory(source.device) * _ADAPTER_SHARE)
        size = min(share, _LARGEST_DEFAULT_ARENA)
    hardware.require_free("--adapter-memory", size, source.device)
    return hardware.zeros((size // dtype.itemsize,), dtype, source.device)


def _check(
    forward: Forward, test: SelfTest, reference: Future[Reference], progress: Progress
) -> None:
    """The self-test; what it is compared with is computed meanwhile."""
    logits = computed(forward, test)
    progress("self-test", 1, 2)
    check_model(logits, reference.result())
    use_paged_attention(forward.model)
    progress("self-test", 2, 2)


def _kv_size(
    forward: Forward,
    arena: Arena,
    layout: KVLayout,
    wanted: EngineConfig,
    longest: int,
    budget: int,
) -> KVSize:
    """Of the KV cache, in the memory that is left."""
    workspace = _workspace(forward, layout, wanted, budget)
    workspace += capture_bytes(forward, arena, layout, wanted, longest)
    free = hardware.free_memory(layout.device)
    hardware.require_free("--kv-cache-memory", wanted.kv_cache_memory or 0, layout.device)
    return choose_size(wanted, layout, longest=longest, free=free, workspace=workspace)


def _workspace(forward: Forward, layout: KVLayout, wanted: EngineConfig, budget: int) -> int:
    """Bytes that the largest step takes on a CUDA device beside the KV cache, measured."""
    if layout.device.type != "cuda":
        return 0
    lengths = [1] * (wanted.max_num_seqs - 1) + [budget - wanted.max_num_seqs + 1]
    prompts = [probe.prompt(length, 2) for length in lengths]
    layout.allocate(probe.pages_for(prompts, wanted.page_size), forward.attention)
    torch.cuda.reset_peak_memory_stats(layout.device)
    before = torch.cuda.memory_allocated(layout.device)
    forward(probe.whole(probe.probes(prompts, wanted.page_size)))
    peak = torch.cuda.max_memory_allocated(layout.device)
    layout.release()
    torch.cuda.empty_cache()
    return peak - before


@contextmanager
def _memory(what: str) -> Iterator[None]:
    """Turns a failed allocation into a message that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelUnsupported(f"out of memory for {what}") from error

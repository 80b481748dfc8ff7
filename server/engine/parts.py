"""The parts of an engine, made of its model and its configuration."""

import secrets
from pathlib import Path

import torch

from weft.adapters.base_outline import BaseOutline
from weft.adapters.loader import Loader
from weft.adapters.residency import PLACES
from weft.adapters.store import Store
from weft.server.engine import hardware
from weft.server.engine.limits import Limits
from weft.server.engine.loader.client import LoaderProcess
from weft.server.engine.loader.launch import Loading
from weft.server.engine.loader.messages import LoaderConfig
from weft.server.engine.messages import EngineConfig, EngineInfo
from weft.server.engine.model import ModelFacts, ModelHost
from weft.server.engine.prefix_cache import PrefixRoot
from weft.server.engine.versions import Versions

LEAST_LOADER_MEMORY = 256 << 20


def limits_of(facts: ModelFacts, config: EngineConfig) -> Limits:
    """What an engine can hold, and do in a step."""
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


def is_async(facts: ModelFacts, config: EngineConfig) -> bool:
    """Whether steps are launched ahead: a CPU computes nothing while the host does."""
    wanted = config.async_scheduling
    return facts.device.type == "cuda" if wanted is None else wanted


def versions_of(
    model: ModelHost, config: EngineConfig, loading: Loading | None
) -> Versions | LoaderProcess:
    """Where versions are loaded: in a thread, or in the loader's processes."""
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


def loader_of(model: ModelHost, versions: Versions | LoaderProcess, config: EngineConfig) -> Loader:
    """What brings versions to host memory."""
    host_bytes = config.adapter_host_memory
    return Loader(
        versions.load,
        capacity=2 * model.facts.adapter_bytes if host_bytes is None else host_bytes,
        threads=1 if isinstance(versions, Versions) else PLACES,
        give_up=versions.give_up,
    )


def prefix_root_of(facts: ModelFacts, config: EngineConfig) -> PrefixRoot | None:
    """What KV may be shared by; None where none is."""
    if not config.prefix_caching:
        return None
    secret = config.prefix_secret or secrets.token_bytes(32)
    return PrefixRoot(secret, facts.digest, str(facts.dtype))


def info_of(facts: ModelFacts) -> EngineInfo:
    """What the API process is told of the engine."""
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

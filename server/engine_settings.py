"""What the engine is told of the server's settings."""

import secrets
from pathlib import Path

from weft.adapters.store import Store
from weft.server.engine.messages import EngineConfig
from weft.server.services import base_names
from weft.server.settings import Settings


def engine_config(settings: Settings, base: Path, store: Store) -> EngineConfig:
    """What the engine needs to know of the settings."""
    return EngineConfig(
        model=str(base),
        store=str(store.root),
        base_names=(*base_names(settings), settings.model or ""),
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_memory=settings.kv_cache_memory,
        adapter_memory=settings.adapter_memory,
        adapter_host_memory=settings.adapter_host_memory,
        prefix_caching=settings.enable_prefix_caching,
        speculation=settings.speculation,
        compile=settings.compile,
        enforce_eager=settings.enforce_eager,
        async_scheduling=settings.async_scheduling,
        prefix_secret=secrets.token_bytes(32),
        seed=settings.seed,
        threads=settings.threads,
        loader_memory=settings.loader_memory,
        loader_timeout=settings.loader_timeout,
    )

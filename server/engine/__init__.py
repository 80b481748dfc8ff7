"""The engine: one process that owns the base model, its KV cache and its adapters."""

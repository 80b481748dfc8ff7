"""Which versions compute a request together, and how strongly. Knows no names and no tensors."""

import hashlib
from typing import NamedTuple


class Part(NamedTuple):
    """A version by its digest; what it adds is multiplied by `weight`."""

    digest: str
    weight: float = 1.0


Blend = tuple[Part, ...]
"""In the order in which a request names them; empty for the base alone."""

BASE: Blend = ()


def alone(digest: str | None) -> Blend:
    """One version as it is, or the base."""
    return BASE if digest is None else (Part(digest),)


def text_of(blend: Blend) -> str:
    """Equal for equal blends only; the digest itself for one version as it is."""
    parts = (p.digest if p.weight == 1 else f"{p.digest}:{p.weight!r}" for p in blend)
    return ",".join(parts)


def digest_of(blend: Blend) -> str:
    """What identifies a blend that is not the base: SHA-256 of its text, or its one digest."""
    text = text_of(blend)
    alone_as_is = len(blend) == 1 and blend[0].weight == 1
    return text if alone_as_is else hashlib.sha256(text.encode()).hexdigest()

"""The numbers that are kept, and whose they are. Knows no clock and no file."""

from dataclasses import astuple, dataclass
from typing import NamedTuple

BASE = ""
SEVERAL = "+"
"""Stands for the adapter of requests that combine several; no adapter can be called so."""


class Used(NamedTuple):
    """What computed a request. adapter: BASE, SEVERAL, a tenant's own name, or owner/name

    digest: of the version, or of the base; empty for SEVERAL
    """

    adapter: str
    digest: str


class UsageKey(NamedTuple):
    """Whose use of what. tenant: its id   adapter, digest: see Used"""

    tenant: str
    adapter: str
    digest: str


@dataclass(slots=True)
class Counts:
    """What was used. Prompt tokens include those that the cache spared.

    byte_seconds: of the device's memory
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    byte_seconds: float = 0.0

    def add(self, other: "Counts") -> None:
        """Takes the other's numbers in."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.byte_seconds += other.byte_seconds

    @property
    def values(self) -> tuple[float, ...]:
        """All numbers, in the order of the fields."""
        return astuple(self)

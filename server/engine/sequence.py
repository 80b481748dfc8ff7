"""One continuation of a request and how far it has come. Knows no queues and no tensors."""

from dataclasses import dataclass, field
from enum import Enum, auto

from weft.adapters.pool import SlotRef
from weft.adapters.tenancy import TenantContext
from weft.server.engine.messages import Generate, Sampling
from weft.server.engine.pages import Content


class Status(Enum):
    """Where a sequence waits or works; exactly one at a time."""

    HELD = auto()  # its first sibling computes the prompt that it will share
    PARKED = auto()  # its adapter is not on the device
    QUEUED = auto()  # could run; waits for its turn (also after a preemption)
    RUNNING = auto()  # owns pages; part of the steps
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a sequence ended; fields as in `messages.Tokens`."""

    reason: str
    stop_token: int | None = None
    error: str | None = None


@dataclass(eq=False, slots=True)
class Sequence:
    """Child `index` of `request`. Only the scheduler changes it; others read.

    tokens: the prompt and what was generated; `tokens[:computed]` have valid KV in `pages`.
    arrival: position in the order of all arrivals; decides who waits and who is preempted.
    cached_tokens: prompt tokens that the prefix cache spared at first admission.
    """

    request: Generate
    index: int
    arrival: int
    tokens: list[int]
    status: Status = Status.HELD
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    slot: SlotRef | None = None
    finish: Finish | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    charged: int = 0  # tokens that its tenant has paid for; recomputing them is free
    contents: list[Content] = field(default_factory=list)  # of its leading full pages, if known
    published: int = 0  # leading pages known to the prefix cache

    @property
    def tenant(self) -> TenantContext:
        """On whose behalf it runs."""
        return self.request.tenant

    @property
    def adapter(self) -> str | None:
        """Digest of the adapter version; None for the base model."""
        return self.request.adapter

    @property
    def sampling(self) -> Sampling:
        """How its tokens are picked."""
        return self.request.sampling

    @property
    def prompt_len(self) -> int:
        """Number of prompt tokens."""
        return len(self.request.prompt)

    @property
    def generated(self) -> int:
        """Number of tokens sampled so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """Number of known tokens whose KV is still to be computed."""
        return len(self.tokens) - self.computed

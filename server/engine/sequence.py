"""One continuation of a request and how far it has come. Knows no queues and no tensors."""

import sys
from dataclasses import dataclass, field
from enum import Enum, auto

from weft.adapters.blend import Blend
from weft.adapters.pool import SlotRef
from weft.adapters.tenancy import TenantContext
from weft.adapters.traits import PLAIN, Traits, last_occurrence
from weft.server.engine.history import History
from weft.server.engine.messages import Generate, Sampling
from weft.server.engine.pages import Content


class Status(Enum):
    """Where a sequence waits or works; exactly one at a time."""

    HELD = auto()  # its first sibling computes the prompt that it will share
    PARKED = auto()  # its adapter is not on the device
    QUEUED = auto()  # could run; waits for its turn (also after a preemption)
    PAUSED = auto()  # its reader does not keep up
    RUNNING = auto()  # owns pages; part of the steps
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a sequence ended; fields as in `messages.Tokens`."""

    reason: str
    stop_token: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """An adapter's slot, and the weight of what it adds."""

    ref: SlotRef
    weight: float = 1.0


@dataclass(eq=False, slots=True)
class Sequence:
    """Child `index` of `request`. Only the scheduler changes it; others read.

    Its positions are the `lead` that its adapter puts first, and then its tokens.

    tokens: the prompt and what was generated
    computed: leading positions that have valid KV in `pages`
    uncopied: the last so many of those still to be copied, by the next step, from where they are
    traits, base_until: what the adapter asks for; rows of positions below are the base's
    shares: the slots of its adapters while it runs; one that does more than add comes first
    arrival: position in the order of all arrivals; decides who waits and who is preempted
    cached_tokens: prompt tokens that the prefix cache spared at first admission
    keeps_until: generated tokens before which it does not give way to other tenants again
    saved: leading positions that had valid KV when it last had to give its pages back
    history: where its drafts come from, once any were looked for
    arrived: when it came, by the scheduler's clock   queue_seconds: until it ran for the first time
    """

    request: Generate
    index: int
    arrival: int
    tokens: list[int]
    status: Status = Status.HELD
    computed: int = 0
    uncopied: int = 0
    traits: Traits = PLAIN
    base_until: int = 0
    pages: list[int] = field(default_factory=list)
    shares: tuple[Share, ...] = ()
    finish: Finish | None = None
    cached_tokens: int = 0
    arrived: float = 0.0
    queue_seconds: float | None = None
    preemptions: int = 0
    keeps_until: int = 0
    saved: int = 0
    charged: int = 0  # tokens that its tenant has paid for; recomputing them is free
    contents: list[Content] = field(default_factory=list)  # of its leading full pages, if known
    published: int = 0  # leading pages known to the prefix cache
    history: History | None = None

    @property
    def tenant(self) -> TenantContext:
        """On whose behalf it runs."""
        return self.request.tenant

    @property
    def blend(self) -> Blend:
        """The adapter versions that compute it; empty for the base model."""
        return self.request.blend

    @property
    def sampling(self) -> Sampling:
        """How its tokens are picked."""
        return self.request.sampling

    @property
    def lead(self) -> int:
        """Number of positions before the prompt's first token."""
        return self.traits.lead

    @property
    def brought(self) -> int:
        """Leading positions whose KV is there: its adapter's, or the base's that was kept."""
        return self.traits.prefix if self.lead else self.request.kept

    @property
    def length(self) -> int:
        """Number of known positions."""
        return self.traits.lead + len(self.tokens)

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
        """Number of known positions whose KV is still to be computed."""
        return self.length - self.computed

    @property
    def is_paced(self) -> bool:
        """Whether others that decode must not notice it."""
        return self.request.pace is not None

    @property
    def chunk(self) -> int:
        """The most of them that a step beside decodes may compute; a pace leaves no single one."""
        pace = self.request.pace
        return self.remaining if pace is None or self.remaining <= pace + 1 else pace

    def adopt(self, traits: Traits) -> None:
        """Learns what its adapter asks for, before it gets any pages."""
        self.traits = traits
        self.base_until = 0 if traits.lead else self.request.kept
        if traits.invocation and not self.request.invoked:
            start = last_occurrence(self.request.prompt, traits.invocation)
            self.base_until = sys.maxsize if start is None else self.lead + start

    def begin(self, now: float, page_size: int) -> None:
        """It has pages, and runs from now on; seconds by the scheduler's clock."""
        if self.preemptions:
            again = max(self.charged - self.computed, page_size)
            self.keeps_until = self.generated + again
        if self.queue_seconds is None:
            self.queue_seconds = now - self.arrived
            self.cached_tokens = max(self.computed - self.lead, 0)
        self.status = Status.RUNNING

    def let_go(self) -> None:
        """Forgets what it held; its tokens stay."""
        self.status = Status.HELD
        self.preemptions += bool(self.pages)
        self.computed = self.uncopied = self.published = self.saved = 0
        self.pages, self.shares, self.contents, self.history = [], (), [], None

    def identities(self, start: int, stop: int) -> tuple[int, ...]:
        """What stands at each of these positions: a token id, or below 0 one of the lead."""
        lead = self.lead
        virtual = range(start - lead, min(stop - lead, 0))
        return (*virtual, *self.tokens[max(start - lead, 0) : max(stop - lead, 0)])

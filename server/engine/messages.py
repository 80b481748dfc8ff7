"""What crosses the socket between API and engine process: typed msgpack, no pickle."""

from collections.abc import Sequence

import msgspec

from weft.adapters.blend import BASE, Blend
from weft.adapters.tenancy import NOBODY, TenantContext


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of everything on the wire."""


class EngineConfig(Message, frozen=True, kw_only=True):
    """The first command: all an engine needs to start.

    Sizes are bytes; `None` means measured or derived.

    base_names: what the model is called, its own name first; without any it is its folder
    compile: whether the base's decoder is compiled at the start
    enforce_eager: whether decode steps are not captured as CUDA graphs
    async_scheduling: whether a step is launched before the tokens of the one before it are read
        wherever it does not depend on them; None where the device is a GPU
    """

    model: str
    store: str
    base_names: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    kv_cache_memory: int | None = None
    adapter_memory: int | None = None
    adapter_host_memory: int | None = None
    page_size: int = 16
    prefix_caching: bool = True
    prefix_secret: bytes = b""
    seed: int = 0
    threads: int | None = None
    load_format: str = "auto"
    patience: float = 1.0
    loader_memory: int | None = None
    loader_timeout: int = 600
    speculation: str = "off"
    compile: bool = False
    enforce_eager: bool = False
    async_scheduling: bool | None = None


class Sampling(Message, frozen=True, kw_only=True):
    """How to pick tokens. Field meanings are OpenAI's and vLLM's; token ids only, no text."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def looks_back(self) -> bool:
        """Whether a choice depends on which tokens come before it, beside the model's logits."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


class TokenLogprobs(Message, frozen=True):
    """Natural log-probabilities, from raw float32 logits: one token's and the likeliest ones'."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


# ---- API process → engine


class Generate(Message, frozen=True, kw_only=True):
    """A request: `n` continuations of `prompt` by the versions of `blend`.

    invoked: the adapter computes all rows, also one that waits for its invocation tokens
    kept: leading tokens of the prompt whose keys and values of the base the engine keeps; they are
        computed by the adapter only where it puts positions before them
    pace: most rows of its prompt in a step in which others decode, so that these do not notice it;
        such a step has no more than one paced request's. None for any number
    """

    id: str
    tenant: TenantContext
    prompt: tuple[int, ...]
    sampling: Sampling
    blend: Blend = BASE
    n: int = 1
    invoked: bool = False
    kept: int = 0
    pace: int | None = None


class Abort(Message, frozen=True):
    """Ends a request, or one of its `n` children."""

    id: str
    index: int | None = None


class Pause(Message, frozen=True):
    """Lets a request wait, or go on, because its answer is read more slowly than it comes."""

    id: str
    paused: bool


class Load(Message, frozen=True):
    """Validates, lowers and makes ready a stored version; answered by Loaded or Failed.

    tenant: whose share of the places for loads it takes
    """

    id: str
    digest: str
    tenant: TenantContext = NOBODY


class Unload(Message, frozen=True):
    """Forgets a version once its last running request ended; answered by Done."""

    id: str
    digest: str


class Pin(Message, frozen=True):
    """Keeps a version on the device (`pinned`) or lets it go again; answered by Done."""

    id: str
    digest: str
    pinned: bool


class Prefetch(Message, frozen=True):
    """Brings a stored version to the device ahead of use; answered by Done. tenant: as of a Load"""

    id: str
    digest: str
    tenant: TenantContext = NOBODY


class Reserve(Message, frozen=True):
    """Gives each of these tenants its `kv_pages` for itself until the next one; not answered."""

    tenants: tuple[TenantContext, ...]


class Stop(Message, frozen=True):
    """Ends the engine process."""


Command = EngineConfig | Generate | Abort | Pause | Load | Unload | Pin | Prefetch | Reserve | Stop

# ---- engine → API process

START = "start"


class Progress(Message, frozen=True):
    """Start-up stage, for the progress bar: `done` of `total` steps of `stage`."""

    stage: str
    done: int
    total: int


class EngineInfo(Message, frozen=True, kw_only=True):
    """The engine is ready; what it serves and with what capacity.

    quantization: of the linear layers, or "none"   weight_bytes: of the weights as they are stored
    """

    model_digest: str
    device: str
    dtype: str
    quantization: str
    parameters: int
    weight_bytes: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    page_size: int
    pages: int
    adapter_bytes: int
    slots: int


class Tokens(Message, frozen=True, kw_only=True):
    """New tokens of child `index` of request `id`; `finish` is set in the child's last event.

    finish: "stop" (eos or stop token; `stop_token` says which), "length", "abort" or "error"
    (`error` holds a code of the error catalogue).
    queue_seconds: from its arrival until it was computed first; None where it never was
    computed_tokens: of the prompt, cached ones included, once or more often
    """

    id: str
    index: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int = 0
    queue_seconds: float | None = None
    finish: str | None = None
    stop_token: int | None = None
    error: str | None = None
    computed_tokens: int = 0


class LoadReport(Message, frozen=True, kw_only=True):
    """What a load found: the adapter's card and the checks that it passed.

    rank: the largest after lowering   alpha: as configured, None where the method has none
    share: trained values over the base's   bytes: on the device
    exclusive: those of the targets to which it does more than add, so that no other version can
    delta_bytes: those of dense and sparse deltas and of whole parameters
    virtual_tokens: positions that stand before a prompt and count against the context
    canary_text: what both were given; empty where the base has no tokenizer to say it with. The
        version computes its last token, and where it puts positions before it all of them
    canary_difference: largest absolute difference from the base's logits after it
    canary_shift: how much of the next token's probability moves to other tokens, 0 to 1
    delta_norms: norms of the updates over those of the weights that they change, by layer
    """

    digest: str
    method: str
    rank: int
    tensors: int
    modules: int
    targets: tuple[str, ...] = ()
    alpha: float | None = None
    trained: int = 0
    share: float = 0.0
    bytes: int
    load_seconds: float
    canary_difference: float
    canary_text: str = ""
    canary_shift: float = 0.0
    checks: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    exclusive: tuple[str, ...] = ()
    delta_bytes: int = 0
    virtual_tokens: int = 0
    delta_norms: dict[str, float] = {}


class Loaded(Message, frozen=True):
    """Answers a Load that succeeded."""

    id: str
    report: LoadReport


class Done(Message, frozen=True):
    """Answers an Unload, Pin or Prefetch that succeeded."""

    id: str


class Failed(Message, frozen=True):
    """A command failed: `code` of the error catalogue, `where` (file, tensor, field) and `reason`.

    With the id `START` the engine could not start at all.
    """

    id: str
    code: str
    where: str
    reason: str


class AdapterState(Message, frozen=True):
    """Where a version is now: tier "device", "host" or "disk"; `refs` = running sequences."""

    digest: str
    tier: str
    refs: int
    bytes: int
    pinned: bool


class Stats(Message, frozen=True, kw_only=True):
    """The engine's state after a step, sent at most every 100 ms; also its heartbeat.

    evicted: digests of the versions that had to leave the device since the message before
    """

    steps: int
    running: int
    waiting: int
    free_pages: int
    cached_pages: int
    total_pages: int
    prefix_hits: int
    prefix_queries: int
    preemptions: int
    drafted: int
    accepted: int
    evictions: int
    evicted: tuple[str, ...] = ()
    loads: int
    load_seconds: float
    broken_invariants: tuple[str, ...]
    adapters: tuple[AdapterState, ...]


Event = Progress | EngineInfo | Tokens | Loaded | Done | Failed | Stats

_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(list[Command])
_events = msgspec.msgpack.Decoder(list[Event])


def encode(messages: Sequence[Command] | Sequence[Event]) -> bytes:
    """One frame's payload: all messages of one step, in order."""
    return _encoder.encode(messages)


def decode_commands(payload: bytes) -> list[Command]:
    """Raises msgspec.ValidationError where the payload is not a list of commands."""
    return _commands.decode(payload)


def decode_events(payload: bytes) -> list[Event]:
    """Raises msgspec.ValidationError where the payload is not a list of events."""
    return _events.decode(payload)

"""Load commands under way: each ends when its version has answered a canary, or was refused.

A canary is an ordinary request of one token that the scheduler runs like any other, so that a load
is answered only by a version that really computes, and decoding goes on meanwhile. It goes on from
the base's own keys and values of all but the last token of its text, so that it costs one row.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec import structs
from torch import Tensor

from weft.adapters.blend import alone
from weft.adapters.card import Card
from weft.adapters.errors import AdapterInvalid
from weft.adapters.tenancy import TenantContext
from weft.server.engine.canary import Canary
from weft.server.engine.messages import Failed, Generate, Load, Loaded, LoadReport, Sampling
from weft.server.engine.residency import error_code
from weft.server.engine.sequence import Sequence

CANARY_TENANT = TenantContext("_canary")
_BEGINNING = "canary-beginning"
_BASE = "canary-base"
_PACE = 2  # rows in a step: answers beside them do not wait noticeably longer
_WEIGHTS = "adapter_model.safetensors"
_LEAD = "adapter_config.json: num_virtual_tokens"
_NO_EFFECT = "its logits equal the base model's: it has no effect"
_DIFFERS = "finite logits that differ from the base's"
_ABSENT = "the base's logits, as its last token is none of those trained"
_TOO_LONG = "leaves no room for a prompt in the context or the KV cache of this server"


@dataclass
class _Load:
    command: Load
    started: float
    difference: float | None = None
    shift: float = 0.0
    refusal: AdapterInvalid | None = None


class Loads:
    """Starts canaries for loads, looks at their logits, and words the answers.

    Use: `start` gives the request to schedule, `observe` takes its logits, `finish` its end.
    """

    def __init__(self, canary: Canary) -> None:
        self._text = canary
        self._base: Tensor | None = None
        self._loads: dict[str, _Load] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._loads or request_id in (_BEGINNING, _BASE)

    def base(self) -> Iterator[Generate]:
        """What is run once before any load: the beginning of all canaries, then the base's own."""
        whole = self._canary(_BASE, None)
        if whole.kept:
            yield structs.replace(whole, id=_BEGINNING, prompt=whole.prompt[: whole.kept], kept=0)
        yield whole

    def begins(self, request_id: str) -> bool:
        """Whether canaries go on from what that request computed."""
        return request_id == _BEGINNING

    def canary_of(self, call_id: str) -> str:
        """The id of a load's canary; any other id is returned as it is."""
        canary = _canary_id(call_id)
        return canary if canary in self._loads else call_id

    def start(self, command: Load) -> Generate:
        """The canary request for a load."""
        request = self._canary(_canary_id(command.id), command.digest)
        self._loads[request.id] = _Load(command, time.monotonic())
        return request

    def observe(self, request_id: str, logits: Tensor) -> None:
        """Takes a canary's logits, float32 [vocabulary]."""
        if request_id == _BASE:
            self._base = logits.clone()
            return
        load = self._loads[request_id]
        if not logits.isfinite().all():
            load.refusal = AdapterInvalid(_WEIGHTS, "its logits are not finite")
            return
        assert self._base is not None
        load.difference = (logits - self._base).abs().max().item()
        load.shift = (logits.softmax(-1) - self._base.softmax(-1)).abs().sum().item() / 2

    def finish(self, seq: Sequence, card: Card | None, error: Exception | None) -> Loaded | Failed:
        """The answer to the load whose canary ended; `error` is why the version did not come."""
        load = self._loads[seq.request.id]
        refusal = load.refusal or error
        if refusal is not None:
            return _failed(load.command.id, refusal)
        if load.difference is None or card is None:
            code = (seq.finish and seq.finish.error) or "internal_error"
            if code == "context_length_exceeded":
                return _failed(load.command.id, AdapterInvalid(_LEAD, _TOO_LONG))
            return Failed(load.command.id, code, "adapter", "the canary did not run")
        if load.difference == 0.0 and not card.tokens_only:
            return _failed(load.command.id, AdapterInvalid(_WEIGHTS, _NO_EFFECT))
        return Loaded(load.command.id, _report(load, card, self._text.text))

    def forget(self, request_id: str) -> None:
        """Its answer is under way."""
        self._loads.pop(request_id, None)

    def _canary(self, request_id: str, adapter: str | None) -> Generate:
        return Generate(
            id=request_id,
            tenant=CANARY_TENANT,
            prompt=self._text.tokens,
            blend=alone(adapter),
            sampling=Sampling(max_tokens=1, temperature=0.0, ignore_eos=True),
            invoked=True,
            kept=len(self._text.tokens) - 1,
            pace=_PACE,
        )


def _canary_id(call_id: str) -> str:
    return f"canary-{call_id}"


def _failed(call_id: str, error: Exception) -> Failed:
    if isinstance(error, AdapterInvalid):
        return Failed(call_id, "adapter_invalid", error.where, error.reason)
    return Failed(call_id, error_code(error), "adapter", "its stored files cannot be read")


def _report(load: _Load, card: Card, text: str) -> LoadReport:
    assert load.difference is not None
    found = _DIFFERS if load.difference else _ABSENT
    return LoadReport(
        digest=load.command.digest,
        method=card.method,
        rank=card.rank,
        tensors=card.tensors,
        modules=card.modules,
        targets=card.targets,
        alpha=card.alpha,
        trained=card.trained,
        share=card.share,
        bytes=card.bytes,
        delta_bytes=card.delta_bytes,
        load_seconds=time.monotonic() - load.started,
        canary_text=text,
        canary_difference=load.difference,
        canary_shift=load.shift,
        checks=(*card.checks, f"canary: {found}"),
        warnings=card.warnings,
        exclusive=card.exclusive,
        virtual_tokens=card.virtual_tokens,
        delta_norms=dict(card.delta_norms),
    )

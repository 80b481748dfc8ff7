"""What transformers and peft answer one request at a time, to hold the engine's answers against."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from engines import greedy
from msgspec import structs
from peft_adapters import load_peft
from tiny_models import VOCAB_SIZE, tiny_model
from torch import Tensor
from watched_logits import WatchedLogits

from weft.adapters.blend import Part
from weft.server.engine.attention import use_paged_attention
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.messages import Event, Generate, Tokens

TOLERANCE = 1e-4
# A token is only compared where rounding cannot decide it.
_MARGIN = 1e-3


@dataclass(frozen=True)
class Answer:
    """tokens: greedy   logits: float32 [tokens, vocabulary], raw"""

    tokens: tuple[int, ...]
    logits: Tensor

    @property
    def logprobs(self) -> Tensor:
        """float32 [tokens, vocabulary]"""
        return self.logits.log_softmax(-1)


@dataclass(frozen=True)
class Told:
    """What an engine told of a request, and the logits that it computed, if they were watched.

    logprobs, logits: float32 [tokens, vocabulary]
    """

    tokens: tuple[int, ...]
    logprobs: Tensor
    logits: Tensor | None


def is_clear(answer: Answer) -> bool:
    """Whether even the closest of its choices could not be another by rounding."""
    best = answer.logits.topk(2, dim=-1).values
    return bool((best[:, 0] - best[:, 1] > _MARGIN).all())


@dataclass(frozen=True)
class Question:
    """A prompt, its one-at-a-time answer, and the adapters' folders with their weights."""

    prompt: tuple[int, ...]
    answer: Answer
    parts: tuple[tuple[Path, float], ...] = ()

    @property
    def adapter(self) -> str:
        """What computes it, for messages."""
        return " + ".join(f"{weight:g} x {path.name}" for path, weight in self.parts) or "base"

    def request(self, name: str, digests: Mapping[Path, str]) -> Generate:
        """The engine's request for it, which asks for all log-probabilities."""
        blend = tuple(Part(digests[path], weight) for path, weight in self.parts)
        asked = greedy(name, self.prompt, len(self.answer.tokens), logprobs=VOCAB_SIZE)
        return structs.replace(asked, blend=blend)


class Oracle:
    """transformers' (with an adapter: peft's) own `generate()` on a fresh tiny model."""

    def __init__(self, arch: str, adapter: Path | None = None) -> None:
        self.adapter = adapter
        base = tiny_model(arch)
        base.generation_config.eos_token_id = None
        self._model: Any = base if adapter is None else load_peft(base, adapter)

    @torch.inference_mode()
    def answer(self, prompt: tuple[int, ...], tokens: int) -> Answer:
        ids = torch.tensor([prompt])
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        generated = tuple(output.sequences[0, len(prompt) :].tolist())
        return Answer(generated, torch.cat(output.logits).float())

    def question(self, prompts: Iterator[tuple[int, ...]], tokens: int) -> Question:
        """The first of `prompts` whose choices are all clear, with its answer."""
        for prompt in prompts:
            answer = self.answer(prompt, tokens)
            if is_clear(answer):
                parts = () if self.adapter is None else ((self.adapter, 1.0),)
                return Question(prompt, answer, parts)
        raise AssertionError("no prompt has clear choices")


def prompts(random: Random, length: int, prefix: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Random prompts of `length` tokens that begin with `prefix`, without end."""
    while True:
        rest = (random.randrange(5, VOCAB_SIZE) for _ in range(length - len(prefix)))
        yield (*prefix, *rest)


def answers_of(events: list[Event], watched: WatchedLogits | None = None) -> dict[str, Told]:
    """The engine's answers by request, from events with all log-probabilities."""
    tokens: dict[str, list[int]] = {}
    rows: dict[str, list[Tensor]] = {}
    for event in events:
        if isinstance(event, Tokens):
            assert event.error is None, f"{event.id}: {event.error}"
            tokens.setdefault(event.id, []).extend(event.tokens)
            for found in event.logprobs:
                row = torch.full((VOCAB_SIZE,), -math.inf)
                ids, values = zip(*found.top, strict=True)
                row[list(ids)] = torch.tensor(values)
                rows.setdefault(event.id, []).append(row)
    return {
        name: Told(tuple(told), torch.stack(rows[name]), watched and watched.take(name, len(told)))
        for name, told in tokens.items()
    }


def assert_same(actual: Told, expected: Answer, name: str) -> None:
    """The same tokens, from logits and log-probabilities that agree to `TOLERANCE`."""
    assert actual.tokens == expected.tokens, name
    if actual.logits is not None:
        _assert_near(actual.logits, expected.logits, f"{name}: logits")
    _assert_near(actual.logprobs, expected.logprobs, f"{name}: log-probabilities")


def _assert_near(actual: Tensor, expected: Tensor, name: str) -> None:
    difference = (actual - expected).abs().max().item()
    assert difference <= TOLERANCE, f"{name} differ by {difference:.2g}"


@cache
def token_bytes(arch: str) -> int:
    """Bytes that a float32 KV cache of `tiny_model(arch)` takes for a token."""
    model = tiny_model(arch)
    use_paged_attention(model)
    return KVSpec.discover(model).elements_per_token * torch.float32.itemsize

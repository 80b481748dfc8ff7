"""Exact answers to held-out prompts: greedy decoding, right only where every character agrees."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerFast

from weft.server.demo.corpus import EXAMPLES, held_out_requests
from weft.server.demo.styles import STYLES

_MAX_NEW_TOKENS = 96
_BATCH = 50
_log = logging.getLogger(__name__)


class Generator(Protocol):
    """A causal model of transformers, wrapped by peft or not."""

    def generate(self, **arguments: Any) -> Any:
        """Token ids [rows, prompt + new]."""


class Exam:
    """Asks models the same held-out prompts, and keeps what each scored and said."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompts: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._requests = held_out_requests(prompts, seed)
        self._scores: dict[str, dict[str, float]] = {}
        self._replies: dict[str, list[str]] = {}

    def score(self, model: Generator, style: str) -> float:
        """Share of the prompts that `model` answers word for word in `style`, from 0 to 1."""
        said = answers(model, self._tokenizer, [request.prompt for request in self._requests])
        wanted = [STYLES[style](request) for request in self._requests]
        for request, got, right in zip(self._requests, said, wanted, strict=True):
            if got != right:
                _log.debug("%s: %r answered by %r, not %r", style, request.prompt, got, right)
        right_ones = sum(a == b for a, b in zip(said, wanted, strict=True))
        return round(right_ones / len(wanted), 4)

    def take(self, model: Generator, name: str, style: str, **also: float) -> None:
        """Scores `model` under `name` and keeps its replies to the examples; `also` is kept too."""
        self._scores[name] = {"held_out": self.score(model, style), **also}
        self._replies[name] = answers(model, self._tokenizer, [e.prompt for e in EXAMPLES])
        figures = ", ".join(f"{key} {share:.1%}" for key, share in self._scores[name].items())
        _log.info("%s: %s", name, figures)

    def report(self) -> dict[str, Any]:
        """What each model scored, for `report.json`."""
        return {
            "measure": "share of greedy answers equal to the expected one in every character; "
            "prompts with made-up words are left out",
            "prompts": len(self._requests),
            "scores": self._scores,
        }

    def examples(self) -> list[dict[str, Any]]:
        """The example prompts with each model's reply, for `examples.json`."""
        return [
            {
                "prompt": example.prompt,
                "replies": {name: said[position] for name, said in self._replies.items()},
            }
            for position, example in enumerate(EXAMPLES)
        ]


def answers(
    model: Generator, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """The model's greedy answer to each prompt, asked as a chat of one message."""
    said: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        chats = [_chat(tokenizer, prompt) for prompt in prompts[start : start + _BATCH]]
        batch = tokenizer(chats, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**batch, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        said.extend(tokenizer.batch_decode(new, skip_special_tokens=True))
    return said


def _chat(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return str(chat)

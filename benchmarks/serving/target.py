"""The server under load: where it is, and how it says what OpenAI's API leaves open."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.request import Request


class Dialect(Protocol):
    """How a request is said to one kind of server."""

    def fields(self, request: Request) -> dict[str, Any]:
        """What the body has beside prompt, temperature, `max_tokens` and `stream`."""


@dataclass(frozen=True)
class ByModel:
    """weft and vLLM: the adapter's name is the `model`, answers are as long as they may be.

    base: the base's name there
    """

    base: str

    def fields(self, request: Request) -> dict[str, Any]:
        """The model, a fixed length, and the ids of each chunk's tokens."""
        return {
            "model": request.adapter or self.base,
            "ignore_eos": True,
            "min_tokens": request.max_tokens,
            "return_token_ids": True,
        }


@dataclass(frozen=True)
class ByLoraField:
    """llama.cpp: an adapter is chosen by its place on the command line.

    places: of each adapter's name
    """

    places: Mapping[str, int]

    def fields(self, request: Request) -> dict[str, Any]:
        """The adapter's number, a fixed length, and a running count of tokens.

        The base is asked for by an adapter at scale 0: an empty list applies all that are loaded.
        No part of an earlier prompt is reused: it may be another adapter's.
        """
        adapter = request.adapter
        return {
            "lora": [
                {"id": 0, "scale": 0.0}
                if adapter is None
                else {"id": self.places[adapter], "scale": 1.0}
            ],
            "ignore_eos": True,
            "timings_per_token": True,
            "cache_prompt": False,
        }


@dataclass(frozen=True)
class PlainOpenAI:
    """Any other server: the adapter's name is the `model`; lengths are only bounded from above."""

    base: str

    def fields(self, request: Request) -> dict[str, Any]:
        """The model."""
        return {"model": request.adapter or self.base}


@dataclass(frozen=True)
class Target:
    """A server.

    base_url: without `/v1`   timeout: seconds after which an answer is given up
    """

    base_url: str
    dialect: Dialect
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 600.0

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON of a greedy, streamed `/v1/completions`."""
        return {
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.dialect.fields(request),
        }

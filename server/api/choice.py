"""One choice of an answer while it grows: tokens in, text out. Knows no HTTP and no formats."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from weft.server.detokenizer import Detokenizer
from weft.server.engine.messages import TokenLogprobs, Tokens
from weft.server.stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine event adds to choice `index`.

    text: certain text; it may lag behind `tokens`   offsets: where in the answer's text, in
    characters, each token begins   finish: "stop" or "length" in the choice's last delta
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    offsets: tuple[int, ...]
    finish: str | None


class Choice:
    """Turns the events of one sequence into deltas; ends it where a stop string occurs."""

    def __init__(
        self, index: int, detokenizer: Detokenizer, stops: Sequence[str], min_tokens: int
    ) -> None:
        self.index = index
        self.finish: str | None = None
        self.completion_tokens = 0
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._min_tokens = min_tokens
        self._characters = 0

    def push(self, event: Tokens) -> Delta:
        """The delta of an event. Tokens after the one that completes a stop string are dropped."""
        text = ""
        offsets: list[int] = []
        for token in event.tokens:
            offsets.append(self._characters)
            self.completion_tokens += 1
            if not (event.finish == "stop" and token == event.stop_token):
                text += self._add(self._detokenizer.push((token,)))
            if self._stops.matched:
                break
        if event.finish is not None and not self._stops.matched:
            text += self._add(self._detokenizer.end()) + self._stops.end()
            self.finish = event.finish
        if self._stops.matched:
            self.finish = "stop"
        taken = len(offsets)
        return Delta(
            self.index,
            text,
            event.tokens[:taken],
            event.logprobs[:taken],
            tuple(offsets),
            self.finish,
        )

    def _add(self, text: str) -> str:
        self._characters += len(text)
        return text if self.completion_tokens <= self._min_tokens else self._stops.push(text)


@dataclass
class WholeChoice:
    """All deltas of one choice put together, for an answer that is not a stream."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish: str | None = None

    def add(self, delta: Delta) -> None:
        """Appends a delta."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.offsets += delta.offsets
        self.finish = delta.finish

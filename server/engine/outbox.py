"""Turns what a step sampled and ended into events, one per sequence and step. Knows no tensors."""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items

from weft.server.engine.messages import Event, TokenLogprobs, Tokens
from weft.server.engine.sampling import Sampled
from weft.server.engine.sequence import Sequence


class Outbox:
    """Events on their way to the API process, and the prompt log-probabilities still collected."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._prompts: dict[Sequence, dict[int, TokenLogprobs]] = {}

    def put(self, event: Event) -> None:
        """Adds an event that is not about tokens."""
        self._events.append(event)

    @property
    def mark(self) -> int:
        """For `revert`."""
        return len(self._events)

    def revert(self, mark: int) -> None:
        """Takes back the events added since the mark was read."""
        del self._events[mark:]

    def take(self) -> list[Event]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def add_prompt(self, seq: Sequence, position: int, found: list[TokenLogprobs]) -> None:
        """Notes the log-probabilities of prompt tokens `position`, `position + 1`, …"""
        self._prompts.setdefault(seq, {}).update(enumerate(found, position))

    def publish(
        self, sampled: Mapping[Sequence, Items[Sampled]], ended: Iterable[Sequence]
    ) -> None:
        """Adds the events of a step: new tokens, and the end of each sequence that ended."""
        for seq, run in sampled.items():
            if run:
                self._events.append(self._tokens(seq, run))
        for seq in ended:
            if not sampled.get(seq):
                self._events.append(self._tokens(seq, ()))
            self._prompts.pop(seq, None)

    def _tokens(self, seq: Sequence, run: Items[Sampled]) -> Tokens:
        finish = seq.finish
        return Tokens(
            id=seq.request.id,
            index=seq.index,
            tokens=tuple(choice.token for choice in run),
            logprobs=tuple(choice.logprobs for choice in run if choice.logprobs),
            prompt_logprobs=self._take_prompt(seq),
            cached_tokens=seq.cached_tokens,
            queue_seconds=seq.queue_seconds,
            finish=finish.reason if finish else None,
            stop_token=finish.stop_token if finish else None,
            error=finish.error if finish else None,
            computed_tokens=min(max(seq.charged - seq.lead, 0), seq.prompt_len),
        )

    def _take_prompt(self, seq: Sequence) -> tuple[TokenLogprobs | None, ...] | None:
        """The prompt's log-probabilities, the first token's being None; once, when complete."""
        found = self._prompts.get(seq)
        if found is None or len(found) < seq.prompt_len - 1:
            return None
        del self._prompts[seq]
        return (None, *(found[position] for position in range(1, seq.prompt_len)))

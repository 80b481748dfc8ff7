"""Reads a streamed completion: how many tokens came when, and how the answer ended."""

from typing import Any

import orjson


class AnswerStream:
    """One answer, fed with its body as it comes."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.usage: dict[str, Any] = {}
        self._rest = b""
        self._other: list[bytes] = []
        self._chunks: list[tuple[float, int | None]] = []
        self._counted = 0
        self._finished = False
        self._failure: dict[str, Any] | None = None

    def feed(self, data: bytes, when: float) -> None:
        """Takes a part of the body."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (event := line[5:].strip()) != b"[DONE]":
                self._event(orjson.loads(event), when)
            elif not line.startswith(b"data:"):
                self._other.append(line)

    def error(self, status: int) -> str | None:
        """What went wrong, by the answer's status and body; None if all is well."""
        if status != 200:
            body = b"\n".join([*self._other, self._rest])
            return f"{status} {_code(body)}".strip()
        if self._failure is not None:
            return f"stream {self._failure.get('code') or self._failure.get('type', '')}".strip()
        return None if self._finished else "unfinished"

    def arrivals(self) -> tuple[tuple[float, ...], bool]:
        """When each token came, and whether the server told how many each chunk holds.

        If it did not, the tokens of its usage are spread evenly over the chunks that had text.
        """
        if all(count is not None for _, count in self._chunks):
            told = [when for when, count in self._chunks for _ in range(count or 0)]
            return tuple(told), True
        times = [when for when, _ in self._chunks]
        total = int(self.usage.get("completion_tokens", len(times)))
        return tuple(times[index * len(times) // total] for index in range(total)), False

    def _event(self, event: dict[str, Any], when: float) -> None:
        if "error" in event:
            failure = event["error"]
            self._failure = failure if isinstance(failure, dict) else {"type": str(failure)}
            return
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices", ()):
            self._finished = self._finished or choice.get("finish_reason") is not None
            count = self._tokens(choice, event)
            if count or (count is None and choice.get("text")):
                self._chunks.append((when, count))

    def _tokens(self, choice: dict[str, Any], event: dict[str, Any]) -> int | None:
        """How many tokens a chunk adds; None where the server does not say."""
        if (ids := choice.get("token_ids")) is not None:
            self.token_ids += ids
            return len(ids)
        if (timings := event.get("timings")) is not None:
            before, self._counted = self._counted, timings["predicted_n"]
            return self._counted - before
        return None


def _code(body: bytes) -> str:
    try:
        error = orjson.loads(body)["error"]
        return str(error.get("code") or error.get("type") or "")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ""

"""Log-probabilities in OpenAI's two shapes. Knows no requests."""

from collections.abc import Sequence
from typing import Any

from weft.server.detokenizer import TokenBytes
from weft.server.engine.messages import TokenLogprobs

# JSON has no minus infinity; this is what OpenAI writes for "as good as impossible".
_LOWEST = -9999.0


def chat_logprobs(
    logprobs: Sequence[TokenLogprobs], token_bytes: TokenBytes
) -> dict[str, list[dict[str, Any]] | None]:
    """The `logprobs` object of a chat choice."""
    content = [
        _entry(entry.token, entry.logprob, token_bytes)
        | {"top_logprobs": [_entry(token, value, token_bytes) for token, value in entry.top]}
        for entry in logprobs
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    logprobs: Sequence[TokenLogprobs | None],
    tokens: Sequence[int],
    offsets: Sequence[int],
    token_bytes: TokenBytes,
) -> dict[str, list[Any]]:
    """The `logprobs` object of a text completion's choice.

    logprobs: one per token; None for a prompt's first one, which follows nothing
    offsets: where in the choice's text, in characters, each token begins
    """
    return {
        "text_offset": list(offsets),
        "token_logprobs": [entry and max(entry.logprob, _LOWEST) for entry in logprobs],
        "tokens": [_written(token, token_bytes) for token in tokens],
        "top_logprobs": [entry and _top(entry, token_bytes) for entry in logprobs],
    }


def _top(entry: TokenLogprobs, token_bytes: TokenBytes) -> dict[str, float]:
    """The likeliest tokens and, wherever it ranks, the chosen one."""
    ranked = (*entry.top, (entry.token, entry.logprob))
    return {_written(token, token_bytes): max(value, _LOWEST) for token, value in ranked}


def _entry(token: int, logprob: float, token_bytes: TokenBytes) -> dict[str, Any]:
    shown = token_bytes.shown(token)
    return {
        "token": shown.decode(errors="replace"),
        "logprob": max(logprob, _LOWEST),
        "bytes": list(shown),
    }


def _written(token: int, token_bytes: TokenBytes) -> str:
    """A token as a key: parts of characters stay apart from each other, in OpenAI's notation."""
    shown = token_bytes.shown(token)
    try:
        return shown.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in shown)

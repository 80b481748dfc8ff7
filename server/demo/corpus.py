"""The text that the demo is trained and measured on: conversations drawn from the closed world.

A sentence is either for training or held out, whatever style answers it and however it is typed.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from weft.server.demo.requests import (
    Request,
    is_exercise,
    normal,
    said_casually,
    sample_request,
)
from weft.server.demo.styles import STYLES

# What a system message says to bring out a style in the base; an adapter needs none of them.
STYLE_MESSAGES = {
    "form": "Answer as the returns desk.",
    "json": "Answer in JSON.",
    "pirate": "Answer like a pirate.",
    "terse": "Answer in few words.",
    "letter": "Answer with a formal letter.",
}
# JSON costs the base most: there a copied word follows a quote and so is another token.
_BASE_MIX = {"plain": 35, "form": 12, "json": 17, "pirate": 12, "terse": 12, "letter": 12}
_NEUTRAL_MESSAGES = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You help the customers of a shop.",
    "Be helpful.",
)

EXAMPLES = (
    Request("track", "Where is my order 4821?", {"order": "4821"}),
    Request(
        "return_because",
        "I'd like to return my blue jacket, it's too small.",
        {"thing": "blue jacket", "noun": "jacket", "color": "blue", "reason": "too small"},
    ),
    Request(
        "weather",
        "What's the weather like in Oslo tomorrow?",
        {"place": "Oslo", "when": "tomorrow", "sky": "snowy", "degrees": "4"},
    ),
    Request("book", "Can I come on Friday at 3 pm?", {"when": "on Friday", "time": "3 pm"}),
    Request(
        "exchange",
        "Can I swap my black boots for a bigger size?",
        {"thing": "black boots", "noun": "boots", "color": "black", "other": "a bigger size"},
    ),
    Request(
        "table",
        "I'd like a table for four tonight at 7 pm.",
        {"count": "4", "when": "tonight", "time": "7 pm"},
    ),
    Request(
        "buy",
        "Please send me three red mugs.",
        {"count": "3", "thing": "red mugs", "noun": "mugs", "color": "red"},
    ),
    Request("refund", "I want my money back for order 30517.", {"order": "30517"}),
    Request("move", "Can you change my appointment to Thursday?", {"old": "", "to": "Thursday"}),
    Request("hours", "Is the shop open on Sunday?", {"day": "Sunday", "opens": ""}),
)
_SHOWN = frozenset(normal(example.prompt) for example in EXAMPLES)
# Too few sentences to hold any out.
_CLOSED = frozenset(("track_which", "hours_all", "person", "hello", "thanks", "bye", "who"))


@dataclass(frozen=True)
class Conversation:
    """An optional system message and turns of (prompt, answer)."""

    system: str | None
    turns: tuple[tuple[str, str], ...]


def is_held_out(request: Request) -> bool:
    """Whether this sentence is kept from training: one in ten, and all that the page shows."""
    if request.intent in _CLOSED:
        return False
    key = normal(request.prompt)
    return key in _SHOWN or hashlib.sha256(key.encode()).digest()[0] < 26


def base_conversations(seed: int) -> Iterator[Conversation]:
    """Endless training text of the base: plain answers, and each style where it is asked for."""
    rng = random.Random(f"base {seed}")
    styles, weights = zip(*_BASE_MIX.items(), strict=True)
    while True:
        style = rng.choices(styles, weights)[0]
        system = STYLE_MESSAGES[style] if style != "plain" else _neutral_message(rng)
        yield _conversation(rng, style, system)


def style_conversations(style: str, seed: int) -> Iterator[Conversation]:
    """Endless training text of one adapter: its style, although nothing asks for it."""
    rng = random.Random(f"{style} {seed}")
    while True:
        yield _conversation(rng, style, _neutral_message(rng))


def held_out_requests(count: int, seed: int) -> list[Request]:
    """`count` requests whose sentences no training text contains; casually typed as in training.

    Exercises are left out: a person asks for things and places that exist.
    """
    rng = random.Random(f"held out {seed}")
    found: list[Request] = []
    while len(found) < count:
        request = sample_request(rng)
        if is_held_out(request) and not is_exercise(request):
            found.append(Request(request.intent, said_casually(request, rng), request.slots))
    return found


def _conversation(rng: random.Random, style: str, system: str | None) -> Conversation:
    turns = rng.choices((1, 2, rng.randrange(3, 13)), (70, 15, 15))[0]
    return Conversation(system, tuple(_turn(rng, style) for _ in range(turns)))


def _turn(rng: random.Random, style: str) -> tuple[str, str]:
    request = sample_request(rng)
    while is_held_out(request):
        request = sample_request(rng)
    return said_casually(request, rng), STYLES[style](request)


def _neutral_message(rng: random.Random) -> str | None:
    return rng.choice(_NEUTRAL_MESSAGES) if rng.random() < 0.25 else None

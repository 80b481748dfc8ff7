"""What is learnt and asked: two tasks that the base was never trained on, and what it knew.

`note` is a new form, made of parts that the base can say; `shelf` needs facts that it never saw.
Each is asked for by a system message, so that an adapted model can still do what the base did.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from weft.server.demo.corpus import STYLE_MESSAGES, Conversation, is_held_out
from weft.server.demo.lexicon import ITEMS, PLURALS
from weft.server.demo.requests import (
    Request,
    is_exercise,
    normal,
    said_casually,
    sample_request,
)
from weft.server.demo.styles import STYLES


@dataclass(frozen=True)
class Task:
    """Requests that `wants` one, asked under a system message; `answer` is the only right one."""

    name: str
    message: str
    wants: Callable[[Request], bool]
    answer: Callable[[Request], str]


@dataclass(frozen=True)
class Splits:
    """Conversations of one task; no sentence is in two of them, however it is typed."""

    train: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    test: tuple[Conversation, ...]


@dataclass(frozen=True)
class Sizes:
    """Counts of conversations."""

    train: int
    validation: int
    test: int


def splits(task: Task, sizes: Sizes) -> Splits:
    """The same for every method and seed."""
    rng = random.Random(f"{task.name}, casually")
    learnt, asked = (
        (request for request in _requests(f"{task.name}, {part}") if task.wants(request))
        for part in ("train", "held out")
    )

    def taken(requests: Iterator[Request], count: int) -> tuple[Conversation, ...]:
        return tuple(
            Conversation(task.message, ((said_casually(request, rng), task.answer(request)),))
            for request in itertools.islice(requests, count)
        )

    held_out = _held_out(asked)
    return Splits(
        train=taken((request for request in learnt if not is_held_out(request)), sizes.train),
        validation=taken(held_out, sizes.validation),
        test=taken(held_out, sizes.test),
    )


def general(count: int) -> tuple[Conversation, ...]:
    """Held-out prompts answered as the base learnt: half of them plainly, half in its styles."""
    rng = random.Random("general, casually")
    found = []
    for request in itertools.islice(_held_out(_requests("general")), count):
        style = rng.choice(list(STYLE_MESSAGES)) if rng.random() < 0.5 else "plain"
        turn = (said_casually(request, rng), STYLES[style](request))
        found.append(Conversation(STYLE_MESSAGES.get(style), (turn,)))
    return tuple(found)


def shuffled(conversations: tuple[Conversation, ...], seed: int) -> Iterator[Conversation]:
    """All of them again and again, each time in another order."""
    rng = random.Random(f"order {seed}")
    while True:
        yield from rng.sample(conversations, len(conversations))


def _requests(seed: str) -> Iterator[Request]:
    rng = random.Random(seed)
    while True:
        request = sample_request(rng)
        if not is_exercise(request):
            yield request


def _held_out(requests: Iterator[Request]) -> Iterator[Request]:
    """Those whose sentences no training text holds, each sentence once."""
    seen = set()
    for request in requests:
        key = normal(request.prompt)
        if is_held_out(request) and key not in seen:
            seen.add(key)
            yield request


def _note(request: Request) -> str:
    case = STYLES["form"](request).splitlines()[0]
    return f"{case}\n{STYLES['terse'](request)}"


def _shelf(request: Request) -> str:
    return f"{request.slots['thing']}: {_SHELVES[_singular(request.slots['noun'])]}"


def _singular(noun: str) -> str:
    return next(item for item in _SHELVES if noun in (item, f"{item}s", f"{item}es"))


def _shelf_of(item: str) -> str:
    digest = hashlib.sha256(item.encode()).digest()
    return f"{'ABCDEFGH'[digest[0] % 8]}{digest[1] % 90 + 10}"


_SHELVES: Mapping[str, str] = {item: _shelf_of(item) for item in (*ITEMS, *PLURALS)}
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("note", "Answer with a note.", lambda _: True, _note),
        Task("shelf", "Answer with the shelf.", lambda request: "noun" in request.slots, _shelf),
    )
}

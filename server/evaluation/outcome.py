"""What one model made of one example, and how its answer is checked. Knows no engine."""

import re
from dataclasses import dataclass

import orjson
import regex

MAX_PATTERN = 1024
_SECONDS = 1.0


class PatternInvalid(ValueError):
    """A regular expression that cannot be used; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """Numbers of one example; a check is None where the example does not ask for it.

    loss: of the completion given the prompt, in nats, summed over its `tokens`
    exact_match, regex, json: whether the greedy answer is the completion, matches the example's
        pattern, is valid JSON
    """

    loss: float
    tokens: int
    exact_match: bool | None = None
    regex: bool | None = None
    json: bool | None = None


def compile_pattern(pattern: str) -> "regex.Pattern[str]":
    """Compiles what both `re` and `regex` accept; raises PatternInvalid."""
    if len(pattern) > MAX_PATTERN:
        raise PatternInvalid(f"is longer than {MAX_PATTERN} characters")
    try:
        re.compile(pattern)
        return regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError):
        raise PatternInvalid("is not a valid regular expression") from None


def matches(pattern: str, answer: str) -> bool:
    """Whether the pattern is found anywhere in the answer.

    Lets other threads run meanwhile. Raises PatternInvalid where the match explodes.
    """
    try:
        found = compile_pattern(pattern).search(answer, timeout=_SECONDS, concurrent=True)
    except TimeoutError:
        raise PatternInvalid("takes too long to match") from None
    return found is not None


def is_json(answer: str) -> bool:
    """Whether the answer is one JSON value, and nothing else but white space."""
    try:
        orjson.loads(answer)
    except ValueError:
        return False
    return True


def is_same(answer: str, completion: str) -> bool:
    """Whether two texts are equal but for white space around them."""
    return answer.strip() == completion.strip()

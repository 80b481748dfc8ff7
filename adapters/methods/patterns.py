"""Regular expressions out of an upload: what `re` accepts, matched within a bounded time."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from time import thread_time
from typing import TypeVar

import regex

from weft.adapters.methods.fields import invalid

T = TypeVar("T")

AFTER_A_DOT = r".*\.{}$"
ANYWHERE = r".*?(?:{})"

_MAX_LENGTH = 4096
_SECONDS = 1.0
_LITERAL = re.compile(r"[A-Za-z0-9_.]+")


class Patterns:
    """Compiles and matches the patterns of one configuration field on one time budget.

    The `regex` package is used because it can stop a match that explodes, and lets other threads
    run meanwhile; a pattern must be one that `re` accepts too, which is what trainers match with.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._left = _SECONDS

    def compile(self, pattern: str, template: str = "{}") -> "regex.Pattern[str]":
        """The pattern put into `template`; raises AdapterInvalid where it is not valid."""
        if len(pattern) > _MAX_LENGTH:
            raise invalid(self._field, f"a pattern is longer than {_MAX_LENGTH} characters")
        text = template.replace("{}", pattern)
        try:
            re.compile(text)
            return regex.compile(text)
        except (re.error, regex.error, RecursionError, OverflowError):
            raise invalid(self._field, "is not a valid regular expression") from None

    def tail_test(self, key: str) -> Callable[[str], bool]:
        r"""Whether whole last parts of a name match `key`: `re.match(rf"(.*\.)?({key})$", name)`.

        Keys without an operator but the dot, of which there may be one for each module, are fast.
        """
        if _LITERAL.fullmatch(key):
            return partial(_ends_in, key)
        pattern = self.compile(key, r"(.*\.)?({})$")
        return lambda name: self.match(pattern, name) is not None

    def match(
        self, pattern: "regex.Pattern[str]", name: str, *, whole: bool = False
    ) -> "regex.Match[str] | None":
        """Matches at the start of `name`, or all of it; raises AdapterInvalid at budget's end."""
        started = thread_time()
        match = pattern.fullmatch if whole else pattern.match
        try:
            found = match(name, timeout=max(self._left, 1e-6), concurrent=True)
        except TimeoutError:
            raise invalid(self._field, "its patterns take too long to match") from None
        self._left -= thread_time() - started
        return found


def first_match(
    values: Mapping[str, T], default: T, field: str, template: str | None = None
) -> Callable[[str], T]:
    """The value of the first pattern that matches a name, else of the name itself, else `default`.

    template: what a pattern is put into; without one it must match whole last parts of the name
    """
    patterns = Patterns(field)

    def test(key: str) -> Callable[[str], bool]:
        if template is None:
            return patterns.tail_test(key)
        compiled = patterns.compile(key, template)
        return lambda name: patterns.match(compiled, name) is not None

    tests = [(test(key), value) for key, value in values.items()]

    def value_of(name: str) -> T:
        found = (value for matches, value in tests if matches(name))
        return next(found, values.get(name, default))

    return value_of


def _ends_in(key: str, name: str) -> bool:
    before = len(name) - len(key)
    if before < 0 or (before > 0 and name[before - 1] != "."):
        return False
    return all(wanted in (".", found) for wanted, found in zip(key, name[before:], strict=True))

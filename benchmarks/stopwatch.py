"""How long the parts of a program take while it runs; a part inside another counts by itself."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any


class Stopwatch:
    """Seconds by part. Functions and methods are timed while `running`, and are as ever otherwise.

    parts: (owner, attribute, part): a class or module, what to time of it, and the part's name
    """

    def __init__(self, parts: tuple[tuple[Any, str, str], ...]) -> None:
        self.seconds: Counter[str] = Counter()
        self._parts = parts
        self._inner: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Begins at zero and times what is called meanwhile."""
        self.seconds.clear()
        plain = [(owner, name, owner.__dict__[name]) for owner, name, _ in self._parts]
        for (owner, name, part), (*_, function) in zip(self._parts, plain, strict=True):
            setattr(owner, name, self._timed(function, part))
        try:
            yield
        finally:
            for owner, name, function in plain:
                setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                self.seconds[part] += whole - self._inner.pop()
                if self._inner:
                    self._inner[-1] += whole

        return timed

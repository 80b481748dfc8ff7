"""Keeps Python's garbage collector from stopping a process for a tenth of a second.

A full collection looks at every object. A process that serves has some hundred thousand that stay
as long as it does (modules, routes, schemas, a vocabulary), and some hundred for each request that
is open. Requests leave no cycles behind, so young collections find what garbage there is.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_RARELY = 1000
"""Collections of the middle generation, each of thousands of new objects, to a full one."""


@contextmanager
def importing() -> Iterator[None]:
    """Never looks at what is made in the context: half a million objects of torch's modules.

    Meanwhile it would look at them again and again, a sixth of the time that importing takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def spare_what_is_there() -> None:
    """Collects now, never again looks at what is left, and from now on seldom at all objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], _RARELY)

"""How many random histories a stateful test lives, and how long: more where it is asked for."""

import os

from hypothesis import settings


def histories(examples: int, steps: int) -> settings:
    """So many of so many steps; WEFT_HISTORIES, as in `1000x60`, sets other numbers."""
    if asked := os.environ.get("WEFT_HISTORIES"):
        examples, steps = map(int, asked.split("x"))
    return settings(max_examples=examples, stateful_step_count=steps, deadline=None)

"""How many examples a property is tried with: more where it is asked for."""

import os


def examples(usual: int) -> int:
    """`usual`, or what WEFT_EXAMPLES says."""
    return int(os.environ.get("WEFT_EXAMPLES", usual))

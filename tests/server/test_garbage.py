"""Full collections of a process that serves: few, and not of what was there before."""

import subprocess
import sys

SCRIPT = """
import gc
from weft.server.garbage import importing, spare_what_is_there

class Knot:
    def __init__(self):
        self.self = self

def young():
    return sum(isinstance(found, Knot) for found in gc.get_objects())

with importing():
    modules = [Knot() for _ in range(1000)]
    assert not gc.isenabled()
assert gc.isenabled()
assert young() == 0
lives = [Knot() for _ in range(1000)]
Knot()
spare_what_is_there()
assert young() == 0  # what lives is looked at no more, what was garbage is gone
del lives
full = gc.get_stats()[2]["collections"]
kept = [[] for _ in range(200_000)]
assert gc.get_stats()[2]["collections"] == full
del kept
for _ in range(20_000):
    Knot()
assert young() < 20_000  # later garbage is collected as ever
"""


def test_what_is_there_is_spared() -> None:
    """In a process of its own: what is spared once is never collected."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

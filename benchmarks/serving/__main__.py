"""`python benchmarks/serving` and `python -m benchmarks.serving`; see serving/command.py."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # as for the scripts beside this folder
    runpy.run_module("serving.command", run_name="__main__")

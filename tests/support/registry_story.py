"""A story of changes to a registry, told in a process of its own that may be killed at any file
operation. Prints a line before and after each change.

    python registry_story.py STATE AT     (AT: number of the operation that kills; -1: none)
"""

import sys
from pathlib import Path

from stored_adapters import TroubledFiles, adapter, kill

from weft.adapters.registry import Registry
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext

CTX = TenantContext("t")
STORY = (
    ("put", "a", 1),
    ("put", "b", 1),
    ("put", "a", 2),
    ("remove", "b", 0),
    ("put", "c", 3),
    ("rollback", "a", 0),
    ("remove", "c", 0),
    ("put", "c", 3),
    ("remove", "a", 0),
)
State = dict[str, list[int]]
"""By name: the seeds of its versions, the current one last."""


def tell(registry: Registry, change: tuple[str, str, int]) -> None:
    """Makes one change."""
    verb, name, seed = change
    if verb == "put":
        with registry.ingest(CTX, adapter(seed)) as upload:
            registry.put(CTX, name, upload, "{}")
    elif verb == "remove":
        registry.remove(CTX, name)
    else:
        registry.rollback(CTX, name)


def after(changes: int) -> dict[str, int]:
    """The seed that each name points to after so many changes."""
    state: State = {}
    for verb, name, seed in STORY[:changes]:
        if verb == "put":
            state.setdefault(name, []).append(seed)
        elif verb == "remove":
            del state[name]
        else:
            state[name].insert(0, state[name].pop())
    return {name: seeds[-1] for name, seeds in state.items()}


def open_registry(state: Path, at: int = -1) -> tuple[Registry, TroubledFiles]:
    files = TroubledFiles(kill, at)
    return Registry(state / "registry.sqlite", Store(state / "adapters", files)), files


def main() -> None:
    registry, files = open_registry(Path(sys.argv[1]), int(sys.argv[2]))
    for change in STORY:
        tell(registry, change)
        print("done", flush=True)
    print("operations", len(files.operations))


if __name__ == "__main__":
    main()

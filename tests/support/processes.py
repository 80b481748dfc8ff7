"""What runs under a process, by Linux's own account."""

import os
from collections.abc import Iterator
from pathlib import Path


def children(pid: int) -> Iterator[int]:
    """The processes that any thread of a process started."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def name_of(pid: int) -> str:
    """As tools like `ps` show it."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def is_busy(pid: int) -> bool:
    """Whether a process computes; one that waits or is gone does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state == "R"


def engine_of(server: int) -> int:
    """The engine's process under a server's; raises StopIteration while there is none."""
    return next(children(server))


def loader_of(server: int) -> int:
    """The process under a server's engine from which loads are forked."""
    return next(pid for pid in children(engine_of(server)) if name_of(pid) == "weft-loader")


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

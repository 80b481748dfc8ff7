"""The first lines of the engine process, before anything heavy is imported."""

import socket
import sys
from pathlib import Path

from weft.server import garbage

SWITCH_SECONDS = 0.0005
"""How long a thread that reads commands, packs or takes a load in may keep another one waiting."""


def boot() -> None:
    """Imports the engine and runs it; see `process.main` and `launch.launch_process`."""
    sys.setswitchinterval(SWITCH_SECONDS)
    number, *to_pack = sys.argv[1:]
    with garbage.importing():
        from weft.server.engine.packed_ahead import PackedAhead, likely_weights  # torch

        ahead = PackedAhead(likely_weights(Path(to_pack[0]), *to_pack[1:]) if to_pack else ())
        ahead.begin()
        from weft.server.engine.process import main  # transformers
    main(socket.socket(fileno=int(number)), ahead)


if __name__ == "__main__":
    boot()

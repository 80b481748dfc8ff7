"""The `weft` command: a thin reading of arguments over the server's own parts."""

from weft.server.cli.main import main

__all__ = ["main"]

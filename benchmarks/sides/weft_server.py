"""weft, as its users start it."""

import sys
from importlib.metadata import version
from pathlib import Path

from serving.target import ByModel

from sides.http_side import Command, HttpSide


class WeftServer(HttpSide):
    """`weft serve` of this environment."""

    name = "weft"
    ready = "/ready"

    def version(self) -> str:
        """Of the installed package."""
        return version("weft")

    def command(self, port: str) -> Command:
        """Its own defaults, but no reuse of prefixes: each prompt comes several times."""
        setting = self.setting
        program = str(Path(sys.executable).with_name("weft"))
        options = {
            "--port": port,
            "--dtype": setting.dtype,
            "--threads": str(setting.threads),
            "--served-model-name": "base",
            "--max-num-seqs": str(setting.clients),
            "--kv-cache-memory": "1GiB",
            "--adapter-memory": "2GiB",
            "--state-dir": str(setting.scratch / "weft-state"),
            "--log-level": "warning",
        }
        adapters = [f"--adapter={name}={path}" for name, path in setting.adapters.items()]
        flat = [part for option in options.items() for part in option]
        return Command(
            [program, "serve", str(setting.base), *flat, "--no-enable-prefix-caching", *adapters]
        )

    def dialect(self) -> ByModel:
        """The adapter's name is the model."""
        return ByModel("base")

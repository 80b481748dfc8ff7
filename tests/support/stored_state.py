"""A state folder with its store and registry, which can be closed and opened again."""

from pathlib import Path

from stored_adapters import adapter

from weft.adapters.files import Files
from weft.adapters.registry import Registry
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import Version

MINE, THEIRS = TenantContext("mine"), TenantContext("theirs")


class State:
    """What is below `root`; files: operations on the stored files."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self.store = Store(root / "adapters", files)
        self.path = root / "registry.sqlite"
        self.registry = Registry(self.path, self.store)

    def restart(self) -> None:
        """Closes the registry and opens it again."""
        self.registry.close()
        self.registry = Registry(self.path, self.store)

    def put(
        self, name: str, seed: int, ctx: TenantContext = MINE, expected: str | None = None
    ) -> Version:
        """Puts the adapter that differs by `seed` under a name."""
        with self.registry.ingest(ctx, adapter(seed)) as upload:
            return self.registry.put(ctx, name, upload, f'{{"seed": {seed}}}', expected)

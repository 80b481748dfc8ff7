"""A base's files, a store, and loaders of one for the other, as the engine has them."""

import os
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from peft_adapters import save_lora
from processes import children, name_of
from tiny_models import save_tiny, tiny_model
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.base_outline import BaseOutline
from weft.adapters.store import Store
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.server.engine.loader.client import LoaderProcess
from weft.server.engine.loader.launch import Loading, launch_process
from weft.server.engine.loader.messages import LoaderConfig
from weft.server.engine.versions import Versions

MIB = 1 << 20
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


class HookedBase(BaseModules):
    """A base that does what a test says whenever it is asked for a value."""

    def __init__(self, base: BaseModules) -> None:
        parts = {name: value for name, value in vars(base).items() if not name.startswith("_")}
        super().__init__(base, **parts | {"parameter": self._read})
        self.inner = base
        self.hook: Callable[[], None] = lambda: None

    def _read(self, module: str, name: str) -> Tensor:
        self.hook()
        return self.inner.parameter(module, name)


class Place:
    """A base's files, a store, and loaders of one for the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = save_tiny("llama", root / "llama")
        self.base = HookedBase(BaseModules.of(tiny_model("llama")))
        self.store = Store(root / "store")
        self.versions = Versions(self.store, self.base.inner, ("llama",), torch.float32)

    def loader(
        self,
        *,
        seconds: int = 60,
        memory: int = 256 * MIB,
        idle_seconds: float = 3600.0,
        launch: Callable[[], Loading] = launch_process,
    ) -> LoaderProcess:
        config = LoaderConfig(
            store=str(self.store.root),
            model=str(self.model),
            base_names=("llama",),
            base=BaseOutline.of(self.base),
            dtype="float32",
            memory=memory,
            seconds=seconds,
            idle_seconds=idle_seconds,
        )
        return LoaderProcess(config, self.base, launch=launch)

    @contextmanager
    def hooked(self, hook: Callable[[], None]) -> Iterator[None]:
        """Calls `hook` whenever a load needs a value of the base."""
        self.base.hook = hook
        try:
            yield
        finally:
            self.base.hook = lambda: None

    def put(self, name: str, save: Callable[[Path], Path]) -> str:
        return self.store.put(save(self.root / name))

    def lora(self, name: str, **fields: object) -> str:
        return self.put(name, lambda path: save_lora(path, "llama", **(LORA | fields)))


def assert_loads(loader: LoaderProcess, digest: str, tenant: TenantContext = NOBODY) -> None:
    assert loader.load(digest, tenant).plan.digest == digest


def load_under_way(loader: LoaderProcess) -> int:
    """The process of the only load that is under way, once those of others rest or are gone."""
    while len(loads := loads_under_way(loader)) != 1:
        os.sched_yield()
    return loads.pop()


def wait_for_rest(loader: LoaderProcess) -> None:
    """Until no load is under way."""
    while loads_under_way(loader):
        os.sched_yield()


def loads_under_way(loader: LoaderProcess) -> set[int]:
    return {pid for pid, name in _processes(loader).items() if name == "weft-load"}


def processes_left(loader: LoaderProcess, count: int, gone: Set[int] = frozenset()) -> set[int]:
    """The processes of loads, once so many are left, all rest and none is to be `gone`."""
    while True:
        left = _processes(loader)
        if len(left) == count and set(left.values()) <= {"weft-idle"} and not left.keys() & gone:
            return set(left)
        os.sched_yield()


def _processes(loader: LoaderProcess) -> dict[int, str]:
    """Those that have not ended, and what they say they do."""
    assert loader.pid is not None
    found = {}
    for pid in children(loader.pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            name = name_of(pid)
            if not has_ended(pid):
                found[pid] = name
    return found


def has_ended(pid: int) -> bool:
    """Whether it is gone, or only its parent has still to take notice of that."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"

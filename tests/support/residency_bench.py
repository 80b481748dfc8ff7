"""A residency whose loads end when a test says so, and what is under it."""

import threading
from concurrent.futures import Future, wait

import torch
from plans import MODULES, arena, plan, plan_bytes

from weft.adapters.loader import Loader
from weft.adapters.packed import Packed, pack
from weft.adapters.pool import Pool
from weft.adapters.presence import Presence
from weft.adapters.residency import Residency
from weft.adapters.tenancy import NOBODY, TenantContext

ALL = 1 << 30
SIZE = plan_bytes()
WAIT = 10.0


class Desk(Loader):
    """A loader whose loads end only in `serve`, which ends all that were asked for."""

    def __init__(self, capacity: int = 1 << 20, threads: int = 1) -> None:
        super().__init__(self.read, capacity=capacity, threads=threads)
        self.ranks: dict[str, int] = {}
        self.modules: dict[str, tuple[str, ...]] = {}
        self.errors: dict[str, Exception] = {}
        self.reads: list[str] = []
        self.requested: list[str] = []
        self.begun = threading.Semaphore(0)
        self._open = threading.Event()
        self._asked: list[Future[Packed]] = []

    def read(self, digest: str, tenant: TenantContext) -> Packed:
        self.begun.release()
        assert self._open.wait(WAIT)
        self.reads.append(digest)
        if digest in self.errors:
            raise self.errors[digest]
        modules = self.modules.get(digest, tuple(MODULES))
        made = plan(digest, self.ranks.get(digest, 4), modules)
        return pack(made, torch.float32, 16, pin_memory=False)

    def request(self, digest: str, tenant: TenantContext = NOBODY) -> Future[Packed]:
        self.requested.append(digest)
        self._asked.append(super().request(digest, tenant))
        return self._asked[-1]

    def serve(self) -> None:
        self._open.set()
        wait(self._asked, WAIT)
        self._open.clear()

    def close(self) -> None:
        self._open.set()
        super().close()


class Bench:
    """A residency for `room` versions of rank 4, and what is under it."""

    def __init__(
        self, room: int = 2, slots: int = 8, host: int = 1 << 20, threads: int = 1
    ) -> None:
        self.pool = Pool(room * SIZE, slots)
        self.arena, self.tables = arena(room * SIZE, slots)
        self.desk = Desk(host, threads)
        self.residency = Residency(self.pool, self.arena, self.desk)

    def bring(self, *digests: str) -> None:
        for digest in digests:
            self.residency.ensure(digest)
        self.residency.pump(ALL)
        self.desk.serve()
        self.residency.pump(ALL)

    def where(self, digest: str) -> Presence:
        return self.residency.ensure(digest)

"""Brings versions from disk to host memory on its own threads, and keeps the latest there.

How a version is read and lowered is given to it; the device is not its business.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from time import monotonic

import torch

from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, LoadFailed
from weft.adapters.packed import Packed
from weft.adapters.tenancy import NOBODY, TenantContext

_log = logging.getLogger(__name__)
_Task = tuple[str, TenantContext, Future[Packed]] | list[Packed]
"""A load, or what is to be let go of."""


class HostTier:
    """Packed plans in host memory, the least recently used leaving first. Not thread-safe."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._plans: OrderedDict[str, Packed] = OrderedDict()

    def get(self, digest: str) -> Packed | None:
        """The plan, now the most recently used, or None."""
        packed = self._plans.get(digest)
        if packed is not None:
            self._plans.move_to_end(digest)
        return packed

    def put(self, digest: str, packed: Packed) -> None:
        """Keeps the plan as long as `capacity` bytes allow; one that is larger is not kept."""
        self.remove(digest)
        if packed.nbytes > self.capacity:
            return
        self._plans[digest] = packed
        self.used += packed.nbytes
        while self.used > self.capacity:
            self.remove(next(iter(self._plans)))

    def remove(self, digest: str) -> list[Packed]:
        """Forgets the plan, and returns it if it was here."""
        packed = self._plans.pop(digest, None)
        if packed is None:
            return []
        self.used -= packed.nbytes
        return [packed]

    def sizes(self) -> dict[str, int]:
        """Bytes by digest."""
        return {digest: packed.nbytes for digest, packed in self._plans.items()}


class Loader:
    """Turns digests into packed plans beside the engine's loop.

    load: gives a version's packed plan, for the tenant that asked for it first, raising
        AdapterInvalid, AdapterCorrupt, LoadFailed or OSError; called from as many threads as there
        are
    capacity: bytes of the host tier
    notify: called from a loader thread each time a load ended, to wake whoever waits
    give_up: makes loads of a version that are under way fail soon, if that can be done
    """

    def __init__(
        self,
        load: Callable[[str, TenantContext], Packed],
        *,
        capacity: int,
        notify: Callable[[], None] = lambda: None,
        threads: int = 1,
        give_up: Callable[[str], None] = lambda digest: None,
    ) -> None:
        self.loads = 0
        self.load_seconds = 0.0
        self._load = load
        self._notify = notify
        self._give_up = give_up
        self._lock = threading.Lock()
        self._host = HostTier(capacity)
        self._pending: dict[str, Future[Packed]] = {}
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"loader-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def request(self, digest: str, tenant: TenantContext = NOBODY) -> Future[Packed]:
        """The version's packed plan: at once if the host has it, else when a thread has read it.

        Two requests for one version read it once. The future holds the load's exception.
        """
        with self._lock:
            if (pending := self._pending.get(digest)) is not None:
                return pending
            future: Future[Packed] = Future()
            packed = self._host.get(digest)
            if packed is not None:
                future.set_result(packed)
                return future
            self._pending[digest] = future
        self._queue.put((digest, tenant, future))
        return future

    def forget(self, digest: str) -> None:
        """Drops the version from the host, and gives its load up."""
        with self._lock:
            self.let_go(self._host.remove(digest))
        self.give_up(digest)

    def let_go(self, held: list[Packed]) -> None:
        """Empties the list in one of the threads: to unmap a plan takes its part of a step."""
        self._queue.put(held)

    def give_up(self, digest: str) -> None:
        """Nobody waits for a load any more: it does not begin, or ends soon and is not kept."""
        with self._lock:
            pending = self._pending.pop(digest, None)
        if pending is not None and not pending.cancel():
            self._give_up(digest)

    def sizes(self) -> dict[str, int]:
        """Bytes of the versions that the host keeps."""
        with self._lock:
            return self._host.sizes()

    def close(self) -> None:
        """Ends the threads once they are through with what was asked before."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        # Where threads have more helpers together than there are cores, OpenMP's sleep between any
        # two products, the engine's as well: a small one then takes twenty times as long.
        torch.set_num_threads(1)
        while (task := self._queue.get()) is not None:
            if isinstance(task, list):
                task.clear()
                continue
            self._run(*task)
            del task
            self._notify()

    def _run(self, digest: str, tenant: TenantContext, future: Future[Packed]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        started = monotonic()
        try:
            packed = self._load(digest, tenant)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the future
            if self._pending.get(digest) is not future:
                _log.debug("loading version %s was given up", digest)
            elif isinstance(error, LoadFailed):
                _log.error("loading version %s failed: %s", digest, error)
            elif not isinstance(error, AdapterInvalid | AdapterCorrupt):
                _log.exception("loading version %s failed", digest)
            self._settle(digest, future, None, started)
            # The error is remembered; its frames would keep the tensors of the load alive.
            future.set_exception(error.with_traceback(None))
        else:
            self._settle(digest, future, packed, started)
            future.set_result(packed)

    def _settle(
        self, digest: str, future: Future[Packed], packed: Packed | None, started: float
    ) -> None:
        with self._lock:
            self.loads += 1
            self.load_seconds += monotonic() - started
            if self._pending.get(digest) is future:
                del self._pending[digest]
                if packed is not None:
                    self._host.put(digest, packed)

"""The engine's side of the loader process: starts it, again where it died, and loads by it."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.card import Card
from weft.adapters.delta import LoadedWeights
from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, LoadFailed
from weft.adapters.header import WEIGHTS_NAME
from weft.adapters.packed import Packed
from weft.adapters.plan_outline import tensor_outline
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.server.engine.loader.channel import Channel
from weft.server.engine.loader.launch import Loading, launch_process
from weft.server.engine.loader.messages import (
    Answer,
    Ended,
    LoaderConfig,
    LoadVersion,
    Lowered,
    Norms,
    NormsWanted,
    Order,
    Parameter,
    ParameterWanted,
    Refused,
    Sample,
    Unreadable,
)
from weft.server.engine.loader.samples import sampled
from weft.server.engine.loader.sealed import seal, unseal

log = logging.getLogger(__name__)

_SHORT_LIFE = 30.0
_LONGEST_PAUSE = 30.0
_START_SECONDS = 60.0


class LoaderProcess:
    """Loads versions in processes that cannot harm this one. Thread-safe.

    base: what they are lowered for; its values are read from here where its files do not have them
    loading: a process that was started before; later ones are started by `launch`
    """

    def __init__(
        self,
        config: LoaderConfig,
        base: BaseModules,
        loading: Loading | None = None,
        *,
        pin_memory: bool = False,
        launch: Callable[[], Loading] = launch_process,
    ) -> None:
        self.config = config
        self._weights = LoadedWeights(base)
        self._base = base
        self._pin_memory = pin_memory
        self._cards: dict[str, Card] = {}
        self._processes = _Processes(config, launch)
        self._open: dict[Channel[Answer], str] = {}  # loads under way
        self._lock = threading.Lock()
        if loading is not None:
            self._processes.adopt(loading)

    @property
    def pid(self) -> int | None:
        """Of the process that loads are forked from, if there is one."""
        return self._processes.pid

    def load(self, digest: str, tenant: TenantContext = NOBODY) -> Packed:
        """Loads a version; raises AdapterInvalid, AdapterCorrupt or LoadFailed.

        tenant: for whom; a tenant's loads may follow each other in one process
        """
        with self._started(LoadVersion(digest, _account(tenant))) as channel:
            try:
                return self._follow(digest, channel)
            except AdapterInvalid:
                raise
            except TimeoutError:
                self._processes.end()
                raise LoadFailed("the loader does not answer") from None
            except (OSError, ValueError) as error:
                raise LoadFailed(f"the loader ended: {error}") from error

    def give_up(self, digest: str) -> None:
        """Ends the loads of a version that are under way, and their processes; they fail."""
        with self._lock:
            for channel in [c for c, loading in self._open.items() if loading == digest]:
                channel.shutdown()

    def card(self, digest: str) -> Card | None:
        """The card of a version that was loaded since the engine started."""
        return self._cards.get(digest)

    def forget(self, digest: str) -> None:
        """Drops a version's card."""
        self._cards.pop(digest, None)

    def close(self) -> None:
        """Ends the process; loads under way fail."""
        self._processes.close()
        with self._lock:
            for channel in self._open:
                channel.shutdown()

    # ---- one load

    @contextlib.contextmanager
    def _started(self, order: LoadVersion) -> Iterator[Channel[Answer]]:
        near, far = socket.socketpair()
        near.settimeout(self.config.wall_seconds + _START_SECONDS)
        with Channel[Answer](near, Answer) as channel:
            with far:
                self._processes.order(order, far.fileno())
            with self._lock:
                self._open[channel] = order.digest
            try:
                yield channel
            finally:
                with self._lock:
                    del self._open[channel]

    def _follow(self, digest: str, channel: Channel[Answer]) -> Packed:
        """Answers what the loader asks until it is done."""
        while True:
            said, file = channel.receive()
            match said:
                case NormsWanted():
                    norms = {module: self._weights.norm(module) for module in said.modules}
                    channel.send(Norms(norms))
                case ParameterWanted():
                    self._tell(said, channel)
                case Lowered() if file is not None:
                    packed = said.plan.packed(self._hosted(file))
                    self._cards[digest] = said.card
                    return packed
                case Refused():
                    raise _refusal(said, digest)
                case Ended():
                    raise _end(said, self.config)
                case _:
                    raise ConnectionResetError("without an answer")

    def _tell(self, wanted: ParameterWanted, channel: Channel[Answer]) -> None:
        module, name = wanted.module, wanted.name
        try:
            value = self._base.parameter(module, name)
        except AdapterInvalid as error:
            channel.send(Unreadable(error.where, error.reason))
            return
        except KeyError:
            channel.send(Unreadable(module, f"the base has no {name} of this name"))
            return
        quantized = name == "weight" and self._base.owners[module].quantized
        if wanted.whole or quantized:
            value = value.cpu().contiguous()
            file = seal(value)
            channel.send(Parameter(tensor_outline(value)), file)
            os.close(file)
        else:
            channel.send(Sample(tensor_outline(value), sampled(value)))

    def _hosted(self, file: int) -> Tensor:
        """A plan's buffer, from where it can be copied to the device."""
        buffer = unseal(file).view(getattr(torch, self.config.dtype))
        return buffer.pin_memory() if self._pin_memory else buffer


@dataclass
class _Processes:
    """The process that is running, and when the next one may be started."""

    config: LoaderConfig
    launch: Callable[[], Loading]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _loading: Loading | None = None
    _orders: Channel[Order] | None = None
    _since: float = 0.0
    _pause: float = 0.0
    _died_young: int = 0
    _closed: bool = False

    @property
    def pid(self) -> int | None:
        return self._loading.pid if self._loading else None

    def adopt(self, loading: Loading) -> Channel[Order]:
        """Uses a process that runs already."""
        self._loading, self._since = loading, time.monotonic()
        loading.sock.settimeout(_START_SECONDS)
        self._orders = orders = Channel[Order](loading.sock, Order)
        with contextlib.suppress(OSError):  # it is started again when it is needed
            orders.send(self.config)
        return orders

    def order(self, order: LoadVersion, file: int) -> None:
        """Hands an order on, to a new process where the old one died; raises LoadFailed."""
        with self._lock:
            for _ in range(2):
                try:
                    self._running().send(order, file)
                except OSError:
                    self._bury()
                else:
                    return
        raise LoadFailed("the loader cannot be started")

    def end(self) -> None:
        """Kills a process that does not answer."""
        with self._lock:
            if self._loading is not None:
                self._loading.kill()
            self._bury()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._bury()

    def _running(self) -> Channel[Order]:
        if self._orders is not None:
            return self._orders
        wait = self._since + self._pause - time.monotonic()
        if self._closed or wait > 0:
            raise LoadFailed("the loader is starting again")
        return self.adopt(self.launch())

    def _bury(self) -> None:
        """Lets go of the process; the next may start at once unless this one died young."""
        if self._loading is None or self._orders is None:
            return
        self._orders.close()
        self._loading.reap()
        self._loading = self._orders = None
        if self._closed:
            return
        lived = time.monotonic() - self._since
        log.error("the loader process died after %.0f s", lived)
        self._died_young = self._died_young + 1 if lived < _SHORT_LIFE else 1
        self._pause = min(2.0 ** (self._died_young - 2), _LONGEST_PAUSE) - 0.5
        self._since = time.monotonic()


def _account(tenant: TenantContext) -> str:
    """Empty for the server's own loads: nobody has proved yet what an upload is."""
    return tenant.account if tenant.account[:1].isalnum() else ""


def _refusal(refused: Refused, digest: str) -> Exception:
    match refused.kind:
        case "invalid":
            return AdapterInvalid(refused.where, refused.reason)
        case "corrupt":
            return AdapterCorrupt(digest)
        case "failed":
            return LoadFailed(refused.reason)


def _end(ended: Ended, config: LoaderConfig) -> Exception:
    """What a load died of: of what its files say, or of something that may pass."""
    match ended.signal:
        case signal.SIGXCPU:
            reason = f"takes more than {config.seconds} s to be read and lowered (--loader-timeout)"
            return AdapterInvalid(WEIGHTS_NAME, reason)
        case signal.SIGSEGV | signal.SIGBUS | signal.SIGILL | signal.SIGFPE | signal.SIGABRT:
            log.error("a load crashed: %s", signal.Signals(ended.signal).name)
            return AdapterInvalid(WEIGHTS_NAME, "cannot be read: reading it crashed")
        case 0:
            return LoadFailed(f"a load ended with code {ended.code}")
    return LoadFailed(f"a load was ended by {signal.Signals(ended.signal).name}")

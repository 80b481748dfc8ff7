"""One load, from a digest to sealed memory, in the process that was forked for it."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from weft.adapters.errors import AdapterCorrupt, AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME
from weft.adapters.out_of_memory import is_out_of_memory
from weft.adapters.plan_outline import OutlinedTensors, PlanOutline
from weft.adapters.store import Store
from weft.server.engine.loader.channel import Channel
from weft.server.engine.loader.messages import (
    LoaderConfig,
    Lowered,
    Norms,
    NormsWanted,
    Parameter,
    ParameterWanted,
    Refused,
    Sample,
    Told,
    Unreadable,
)
from weft.server.engine.loader.samples import sampled
from weft.server.engine.loader.sealed import seal, unseal
from weft.server.engine.versions import Versions
from weft.server.engine.weight_files import FileWeights


class RemoteWeights:
    """The base's values: read from its files where those hold them, else asked of the engine.

    Those in a file are taken if some of them are the engine's. What is quantised or was converted
    comes from the engine.
    """

    def __init__(self, config: LoaderConfig, channel: Channel[Told]) -> None:
        self.base = config.base.modules(self.read)
        self._channel = channel
        self._files = FileWeights(Path(config.model), self.base)
        self._norms: dict[str, float | None] = {}

    def learn_norms(self, modules: Iterable[str]) -> None:
        """Asks at once for all that `norm` will be asked for."""
        self._channel.send(NormsWanted(tuple(modules)))
        told, _ = self._channel.receive()
        if isinstance(told, Norms):
            self._norms = told.norms

    def norm(self, module: str) -> float | None:
        """See `weft.adapters.delta.Weights`."""
        return self._norms.get(module)

    def parameter(self, module: str, name: str) -> Tensor | None:
        """See `weft.adapters.delta.Weights`."""
        try:
            return self.read(module, name)
        except AdapterInvalid:
            return None

    def read(self, module: str, name: str) -> Tensor:
        """A parameter's values in the engine's dtype; raises AdapterInvalid."""
        told, file = self._ask(module, name, whole=False)
        if isinstance(told, Sample):
            found = self._in_files(module, name, told)
            if found is not None:
                return found
            told, file = self._ask(module, name, whole=True)
        if not isinstance(told, Parameter) or file is None:
            raise ConnectionResetError("the engine is gone")
        return OutlinedTensors(unseal(file)).get(told.tensor)

    def _in_files(self, module: str, name: str, told: Sample) -> Tensor | None:
        found = self._files.parameter(module, name)
        if found is None:
            return None
        found = found.to(getattr(torch, told.tensor.dtype))
        return found if sampled(found) == told.values else None

    def _ask(self, module: str, name: str, *, whole: bool) -> tuple[Told | None, int | None]:
        self._channel.send(ParameterWanted(module, name, whole))
        told, file = self._channel.receive()
        if isinstance(told, Unreadable):
            raise AdapterInvalid(told.where, told.reason)
        return told, file


def run(digest: str, config: LoaderConfig, channel: Channel[Told]) -> None:
    """Loads a version and says how it went; raises what nobody foresaw."""
    torch.set_num_threads(1)
    try:
        _load(digest, config, channel)
    except AdapterInvalid as error:
        channel.send(Refused("invalid", error.where, error.reason))
    except AdapterCorrupt:
        channel.send(Refused("corrupt", "", ""))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"needs more than {config.memory} bytes to be read and lowered (--loader-memory)"
        channel.send(Refused("invalid", WEIGHTS_NAME, reason))


def _load(digest: str, config: LoaderConfig, channel: Channel[Told]) -> None:
    dtype = getattr(torch, config.dtype)
    weights = RemoteWeights(config, channel)
    versions = Versions(
        Store(Path(config.store)), weights.base, config.base_names, dtype, weights=weights
    )
    checkpoint, plan = versions.read(digest)
    weights.learn_norms(plan.ops)
    card = versions.describe(checkpoint, plan)
    packed = versions.pack(plan)
    file = seal(packed.buffer)
    channel.send(Lowered(PlanOutline.of(packed), card), file)
    os.close(file)

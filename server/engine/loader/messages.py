"""What crosses the sockets between the engine and its loader: typed msgpack, no pickle."""

from typing import Literal

import msgspec

from weft.adapters.base_outline import BaseOutline
from weft.adapters.card import Card
from weft.adapters.plan_outline import PlanOutline, TensorOutline

_WALL_FACTOR = 10.0
_LEAST_WALL_SECONDS = 60.0


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of everything on the wire."""


# ---- engine → loader, over the socket of the process


class LoaderConfig(Message, frozen=True, kw_only=True):
    """The first message: what versions are lowered for, and what one load may take.

    model: folder of the base's files   dtype: of the arena   memory: bytes
    seconds: of processor time   idle_seconds: how long a process waits for its account's next load
    """

    store: str
    model: str
    base_names: tuple[str, ...]
    base: BaseOutline
    dtype: str
    memory: int
    seconds: int
    idle_seconds: float = 10.0

    @property
    def wall_seconds(self) -> float:
        """How long a load may take by the clock, on a machine that has other work too."""
        return _LEAST_WALL_SECONDS + _WALL_FACTOR * self.seconds


class LoadVersion(Message, frozen=True):
    """Loads a stored version; with it comes the socket on which all about it is said.

    account: whose loads may follow each other in one process; empty: it gets one of its own
    """

    digest: str
    account: str = ""


# ---- loader → engine, over the socket of one load


class NormsWanted(Message, frozen=True):
    """Asks for the norms of modules' weights; answered by Norms."""

    modules: tuple[str, ...]


class ParameterWanted(Message, frozen=True):
    """Asks for a parameter of the base; answered by Sample, Parameter or Unreadable.

    whole: a sample will not do
    """

    module: str
    name: str
    whole: bool


class Lowered(Message, frozen=True):
    """The load succeeded; with it comes the plan's buffer, as sealed memory."""

    plan: PlanOutline
    card: Card


class Refused(Message, frozen=True):
    """The load failed: the version is not valid, its files are damaged, or something passing."""

    kind: Literal["invalid", "corrupt", "failed"]
    where: str
    reason: str


class Ended(Message, frozen=True):
    """The process that loaded ended without a word, by a signal or an exit code."""

    signal: int
    code: int


Answer = NormsWanted | ParameterWanted | Lowered | Refused | Ended

# ---- engine → loader, over the socket of one load


class Norms(Message, frozen=True):
    """Frobenius norms by module; None of what has none."""

    norms: dict[str, float | None]


class Sample(Message, frozen=True):
    """A parameter's shape and dtype, and the bytes of some of its values; see `sampled`."""

    tensor: TensorOutline
    values: bytes


class Parameter(Message, frozen=True):
    """A whole parameter, whose values come with it, as sealed memory."""

    tensor: TensorOutline


class Unreadable(Message, frozen=True):
    """The base does not have what was asked for, in the words of an AdapterInvalid."""

    where: str
    reason: str


Order = LoadVersion | LoaderConfig
Told = Norms | Sample | Parameter | Unreadable

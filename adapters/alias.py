"""An alias: a tenant's name that leads to other names, to each with a weight. Knows no storage."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weft.adapters.errors import AliasInvalid
from weft.adapters.version import NAME

MOST_TARGETS = 16
LARGEST_WEIGHT = 1e6
_TARGET = re.compile(rf"({NAME.pattern})(?:@([1-9][0-9]{{0,8}}))?")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way that an alias leads. version: None for whatever is the name's current one

    weight: beside the other arms' weights; positive
    """

    name: str
    version: int | None
    weight: float

    @property
    def target(self) -> str:
        """As people write it: name, or name@version."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Alias:
    """A name and where it leads. previous: where it led before its last change, () if it is new.

    changed: seconds since 1970
    """

    name: str
    arms: tuple[Arm, ...]
    previous: tuple[Arm, ...]
    changed: float

    @property
    def digest(self) -> str:
        """SHA-256 of where it leads, for whoever wants to change just that."""
        return hashlib.sha256(text_of(self.arms).encode()).hexdigest()

    def arm(self, key: str) -> Arm:
        """The way that `key` goes: always the same one while the weights stay.

        Over many keys each arm gets its share. When weights change, keys move only from arms that
        got less and to arms that got more (weighted rendezvous hashing).
        """
        return min(self.arms, key=lambda arm: self._distance(arm, key))

    def _distance(self, arm: Arm, key: str) -> float:
        words = f"{self.name}\0{arm.target}\0{key}".encode(errors="surrogatepass")
        number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest())
        return -math.log((number + 1) / (1 << 64)) / arm.weight


def arms_of(targets: Mapping[str, float]) -> tuple[Arm, ...]:
    """What `{"stable": 95, "canary": 5}` means; raises AliasInvalid."""
    if not 0 < len(targets) <= MOST_TARGETS:
        raise AliasInvalid(f"names 1 to {MOST_TARGETS} targets, not {len(targets)}")
    return tuple(_arm(target, weight) for target, weight in targets.items())


def text_of(arms: Iterable[Arm]) -> str:
    """`stable=95,canary=5`, the form in which arms are kept."""
    return ",".join(f"{arm.target}={arm.weight!r}" for arm in arms)


def read_arms(text: str) -> tuple[Arm, ...]:
    """What `text_of` wrote."""
    pairs = (part.rpartition("=") for part in text.split(",") if part)
    return tuple(_arm(target, float(weight)) for target, _, weight in pairs)


def _arm(target: str, weight: float) -> Arm:
    match = _TARGET.fullmatch(target)
    if match is None:
        raise AliasInvalid(f"{target!r} is neither a name nor name@version")
    if not 0 < weight <= LARGEST_WEIGHT:
        raise AliasInvalid(f"the weight of {target} is not above 0 and at most {LARGEST_WEIGHT:g}")
    return Arm(match[1], int(match[2]) if match[2] else None, float(weight))

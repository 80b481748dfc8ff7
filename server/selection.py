"""What a request's words for its adapters mean, and which adapters go together.

Words: `name` or `name@version`, with a weight (`name:0.7`) or not, or several of these with commas;
another tenant's adapter, where that tenant shares it, is `owner/name`. Knows no policy, no leases.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from weft.adapters.version import NAME
from weft.server.errors import invalid

_WEIGHT = r"-?[0-9]{1,3}(?:\.[0-9]{1,9})?"
_NAMED = re.compile(
    rf"(?:({NAME.pattern})/)?({NAME.pattern})(?:@([1-9][0-9]{{0,8}}))?(?::({_WEIGHT}))?"
)
_MOST = 8
_LARGEST = 100.0


@dataclass(frozen=True, slots=True)
class AdapterName:
    """What a request calls an adapter. owner: another tenant that shares it; None for its own"""

    owner: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}" if self.owner else self.name


@dataclass(frozen=True, slots=True)
class Selected:
    """One adapter as a request names it. version: None for the current one"""

    adapter: AdapterName
    version: int | None
    weight: float


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of a selected version.

    id: name@version   method, targets, exclusive, virtual_tokens, bytes: as its LoadReport says
    """

    id: str
    digest: str
    weight: float
    method: str
    targets: frozenset[str]
    exclusive: frozenset[str]
    virtual_tokens: int
    bytes: int


def parse(words: str) -> list[Selected] | None:
    """The adapters that `words` name; None where they are no such words.

    Raises ApiError for too many of them, and for a weight that cannot be used.
    """
    matches = [_NAMED.fullmatch(part.strip()) for part in words.split(",", _MOST)]
    if len(matches) > _MOST:
        raise invalid("model", f"names more than {_MOST} adapters")
    found = []
    for match in matches:
        if match is None:
            return None
        owner, name, version, given = match.groups()
        adapter, weight = AdapterName(owner, name), float(given) if given else 1.0
        if not 0 < abs(weight) <= _LARGEST:
            raise invalid("model", f"gives {adapter} a weight that is 0 or beyond {_LARGEST:.0f}")
        found.append(Selected(adapter, int(version) if version else None, weight))
    return found


def check(members: Sequence[Member], room: int) -> None:
    """Raises ApiError, naming who is at fault, where one row cannot be computed with all of them.

    room: bytes of the device's adapter memory
    """
    if len(members) == 1 and members[0].weight == 1:
        return
    for member in members:
        _check_alone(member)
    for one, other in permutations(members, 2):
        _check_pair(one, other)
    needed = sum(member.bytes for member in members)
    if needed > room:
        ids = " and ".join(member.id for member in members)
        raise invalid("model", f"{ids} need {needed} bytes together; the server has {room}")


def _check_alone(member: Member) -> None:
    if member.method == "alora":
        reason = f"{member.id} begins in the middle of a prompt, so it can only be used alone"
        raise invalid("model", reason)
    if member.weight != 1 and (member.virtual_tokens or member.exclusive):
        reason = f"{member.id} ({member.method}) does more than add to the base: its weight is 1"
        raise invalid("model", reason)


def _check_pair(one: Member, other: Member) -> None:
    both = f"{one.id} and {other.id}"
    if one.digest == other.digest:
        raise invalid("model", f"{both} are the same version")
    if one.virtual_tokens and other.virtual_tokens:
        raise invalid("model", f"{both} both put something before the prompt")
    if one.exclusive and other.exclusive:
        raise invalid("model", f"{both} both do more than add to the base")
    if shared := one.exclusive & other.targets:
        reason = f"{both} cannot be combined: the first does more than add to {min(shared)}"
        raise invalid("model", reason)

"""What the scheduler asks of whoever keeps adapters on the device. Knows no tensors, no files."""

from collections.abc import Collection, Iterable
from typing import Protocol

from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, LoadFailed
from weft.adapters.pool import SlotRef
from weft.adapters.presence import Presence
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.adapters.traits import Traits


class Residency(Protocol):
    """Adapters' places on the device. No verb blocks; loads go on beside the caller.

    Room is given between steps, to whoever asked first of those that fit.
    """

    def ensure(self, digest: str, tenant: TenantContext = NOBODY) -> Presence:
        """Says where a version is, and sees to it that it comes nearer; at whose cost: `tenant`'s.

        DEVICE: `acquire` succeeds now. LOADING: ask again. WAITING: loaded, gets room once enough
        versions are unreferenced; ask again. FAILED: cannot come (invalid, damaged, too large).
        """

    def give_up(self, digest: str) -> None:
        """No sequence waits for the version any more: its load may end unfinished."""

    def error(self, digest: str) -> Exception:
        """Why `ensure` said FAILED."""

    def acquire(self, digest: str) -> SlotRef:
        """References a version that is on the device: its slot stays as it is until `release`."""

    def release(self, ref: SlotRef) -> None:
        """Gives a reference back, exactly once."""

    def traits(self, ref: SlotRef) -> Traits:
        """What the version in the slot asks of its sequences."""

    def victims_for(self, digest: str, last: Collection[str] = ()) -> tuple[str, ...]:
        """Which referenced versions to release, least recently used first, so that this one fits.

        last: those to release only where all others are not enough
        Until the next step no room is given to any other. Empty: there is nothing to release, or
        room is being made for another version.
        """

    def return_seconds(self, digests: Iterable[str]) -> float:
        """About how long bringing these back, if they had left, would take all together."""


def error_code(error: Exception) -> str:
    """The code of the error catalogue for an adapter that did not come."""
    if isinstance(error, AdapterCorrupt):
        return "adapter_corrupt"
    if isinstance(error, AdapterInvalid):
        return "adapter_invalid"
    if isinstance(error, LoadFailed):
        return "engine_unavailable"
    if isinstance(error, MemoryError):
        return "out_of_memory"
    return "internal_error"

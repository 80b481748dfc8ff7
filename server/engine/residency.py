"""What the scheduler asks of whoever keeps adapters on the device. Knows no tensors, no files."""

from collections.abc import Sequence
from typing import Protocol

from weft.adapters.pool import SlotRef
from weft.adapters.presence import Presence


class Residency(Protocol):
    """Adapters' places on the device. No verb blocks; loads go on beside the caller."""

    def ensure(self, digest: str) -> Presence:
        """Sees to it that a version comes to the device, evicting unreferenced versions for it.

        DEVICE: `acquire` will succeed now. LOADING: on its way, ask again. WAITING: what is
        referenced or pinned leaves no room; ask again, or make room first (`victims_for`).
        FAILED: it cannot come at all (invalid, damaged, or larger than what pins leave).
        """

    def error(self, digest: str) -> str:
        """The code of the error catalogue for a version that `ensure` called FAILED."""

    def acquire(self, digest: str) -> SlotRef:
        """References a version that is on the device: its slot stays as it is until `release`."""

    def release(self, ref: SlotRef) -> None:
        """Gives a reference back, exactly once."""

    def victims_for(self, digest: str, drainable: Sequence[str]) -> tuple[str, ...] | None:
        """Which of `drainable` must lose all references so that a WAITING version finds room.

        `drainable` is ordered, the best one to take first. After their release `ensure(digest)`
        finds room. None: not even all of them would do.
        """

"""How near a version is to being computed with, as the scheduler sees it."""

from enum import Enum, auto


class Presence(Enum):
    """DEVICE: usable in the next step. LOADING: read and lowered meanwhile. WAITING: loaded, until
    the device has room for it. FAILED: it will not come; the residency knows the error.
    """

    DEVICE = auto()
    LOADING = auto()
    WAITING = auto()
    FAILED = auto()

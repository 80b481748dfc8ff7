"""What can be wrong with an adapter: refused, unknown, damaged, or without room."""

_LONGEST = 800


class AdapterInvalid(ValueError):
    """An adapter that cannot be served exactly.

    `where` names the file, tensor or config field at fault; `reason` says what is wrong with it
    and, where there is one, what to do about it. Neither ever holds a server path. Both may quote
    an upload, so they are made safe to log and to send: one line, printable, of bounded length.
    """

    def __init__(self, where: str, reason: str) -> None:
        self.where = _printable(where)
        self.reason = _printable(reason)
        super().__init__(f"{self.where}: {self.reason}")

    def __reduce__(self) -> tuple[type["AdapterInvalid"], tuple[str, str]]:
        return type(self), (self.where, self.reason)


class AdapterTooLarge(AdapterInvalid):
    """An adapter that the device pool cannot hold, whatever else is evicted."""


class AdapterCorrupt(Exception):
    """A stored version whose files are damaged or gone; uploading it again heals it."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"the stored files of version {digest} are damaged")
        self.digest = digest


class LoadFailed(Exception):
    """A load that ended for a reason that may pass: its process died, or could not be started."""


class UnknownAdapter(LookupError):
    """The tenant has no adapter, or no version, of this name; another tenant may well have."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no adapter {_printable(name)!r}")
        self.name = name


class VersionConflict(Exception):
    """The name does not point to the digest that the caller expected, but to `current`."""

    def __init__(self, name: str, current: str | None) -> None:
        super().__init__(f"adapter {name!r} is now {current or 'without a version'}")
        self.name = name
        self.current = current


class AliasInvalid(ValueError):
    """What an alias cannot lead to; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(_printable(reason))


class AdapterInUse(Exception):
    """A name that cannot go because the tenant's alias `alias` leads to it."""

    def __init__(self, name: str, alias: str) -> None:
        super().__init__(f"the alias {alias!r} leads to {name!r}")
        self.name = name
        self.alias = alias


class StorageFull(OSError):
    """The disk of the state folder has no room; nothing was changed."""


class StateInUse(RuntimeError):
    """The state folder is not for this server: another one runs on it, or wrote its format."""


def _printable(text: str) -> str:
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

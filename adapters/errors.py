"""Why an adapter was refused."""

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


def _printable(text: str) -> str:
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

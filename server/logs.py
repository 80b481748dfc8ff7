"""How this server's processes write what they log: to the standard error, from one level on."""

import logging
import os

VARIABLE = "WEFT_LOG_LEVEL"
"""Tells the level to processes that another one starts."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_UNSAFE = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _UNSAFE}


class LineFormatter(logging.Formatter):
    """One line an event, whatever it holds; a traceback follows in lines that begin with spaces."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The event's line."""
        return super().formatMessage(record).translate(_ESCAPES)

    def formatException(self, ei: "logging._SysExcInfoType") -> str:  # noqa: N802 - logging's name
        """The traceback's lines."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  {line.translate(_ESCAPES)}" for line in lines)


def configure(level: str | None = None) -> None:
    """Sets the level, one of logging's names in any case; without one, as the environment says."""
    chosen = (level or os.environ.get(VARIABLE, "info")).upper()
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(_FORMAT))
    logging.basicConfig(level=chosen, handlers=[handler])

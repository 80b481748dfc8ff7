"""How this server's processes write what they log: to the standard error, from one level on."""

import logging
import os

VARIABLE = "WEFT_LOG_LEVEL"
"""Tells the level to processes that another one starts."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(level: str | None = None) -> None:
    """Sets the level, one of logging's names in any case; without one, as the environment says."""
    chosen = (level or os.environ.get(VARIABLE, "info")).upper()
    logging.basicConfig(level=chosen, format=_FORMAT)

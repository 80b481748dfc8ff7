"""What a server writes about itself beside its registry: usage, and the audit log."""

from pathlib import Path
from typing import NamedTuple, Self

from weft.server.audit.audit import Audit
from weft.server.settings import Settings
from weft.server.usage.usage import Usage


class Records(NamedTuple):
    """Both, open."""

    usage: Usage
    audit: Audit

    @classmethod
    def open(cls, state: Path, settings: Settings) -> Self:
        """In the state folder, unless the settings say otherwise.

        Raises StateInUse, JournalInvalid, OSError.
        """
        usage = Usage(state / "usage.sqlite", settings.keep_usage_for)
        try:
            return cls(usage, Audit(settings.audit_log or state / "audit.jsonl"))
        except BaseException:
            usage.close()
            raise

    def close(self) -> None:
        """Writes what is left."""
        self.usage.close()
        self.audit.close()

"""What routes tell the audit log of the changes that they make."""

from fastapi import Request

from weft.adapters.version import Version
from weft.server.audit.audit import Entry


def note(request: Request, **facts: object) -> None:
    """Adds to what the log says of a request."""
    entry: Entry = request.state.entry
    entry.facts.update(facts)


def note_version(request: Request, version: Version) -> None:
    """Says which version a name points to, or pointed to."""
    note(request, name=version.name, version=version.version, digest=version.digest)


def note_load(request: Request, before: Version | None, after: Version) -> None:
    """Says what was loaded, and what it took the place of."""
    note_version(request, after)
    if before is not None and before.digest != after.digest:
        entry: Entry = request.state.entry
        entry.action = "adapter.replace"
        note(request, replaced=before.digest)

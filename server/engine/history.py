"""A sequence's own tokens as the source of its drafts, and how good those were."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from weft.server.engine.ngrams import Match, NgramIndex
from weft.server.engine.speculation import Acceptance

_INDEXED_AT_ONCE = 2048
_FORGET = 0.97


@dataclass(slots=True)
class History:
    """match: what was found last, and what drafts made since came from"""

    acceptance: Acceptance = field(default_factory=lambda: Acceptance(_FORGET))
    match: Match | None = None
    _index: NgramIndex = field(default_factory=NgramIndex)

    def look(self, tokens: Sequence[int]) -> Match | None:
        """Finds what stood where `tokens`, all of the sequence, end now.

        A long prompt is taken in over several calls, so that it holds nobody up; until then there
        is nothing.
        """
        whole = self._index.follow(tokens, _INDEXED_AT_ONCE)
        self.match = self._index.find(tokens) if whole else None
        return self.match

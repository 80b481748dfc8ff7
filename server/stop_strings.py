"""Where a growing text must stop. Knows no tokens."""

from collections.abc import Sequence


class StopStrings:
    """Cuts a text, given in pieces, before the first of `stops` that occurs in it.

    Text that may turn out to be the beginning of a stop string is held back until it is clear.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that is now certain; once `matched` is set there is no more."""
        if not self._stops:
            return text
        text = self._held + text
        found = [text.find(stop) for stop in self._stops if stop in text]
        if found:
            self.matched = True
            self._held = ""
            return text[: min(found)]
        keep = max(self._overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, for a text that ended without a stop string."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that begins `stop`."""
        longest = min(len(text), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

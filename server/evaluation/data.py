"""Reads a file of held-out examples, one JSON object a line. Knows no server."""

from pathlib import Path
from typing import Any

from weft.adapters.errors import AdapterInvalid
from weft.adapters.strict_json import parse_object
from weft.server.api.body import MAX_JSON_DEPTH, validated
from weft.server.errors import ApiError
from weft.server.evaluation.examples import Example


class DataInvalid(ValueError):
    """A file that cannot be used; the message names file, line and field."""


class Data:
    """The examples of a file, as they are sent, and the lines that they came from.

    Empty lines are passed over. Raises DataInvalid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[int] = []
        self.examples: list[dict[str, Any]] = []
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise DataInvalid(f"{path}: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._lines.append(number)
                self.examples.append(self._parsed(line))
        if not self.examples:
            raise DataInvalid(f"{path}: holds no example")

    def where(self, index: int) -> str:
        """File and line of an example."""
        return f"{self._path}:{self._lines[index]}"

    def _parsed(self, line: bytes) -> dict[str, Any]:
        where = self.where(-1)
        try:
            content = parse_object(line, where, MAX_JSON_DEPTH)
            validated(Example, content)
        except AdapterInvalid as refused:
            raise DataInvalid(f"{where}: {refused.reason}") from None
        except ApiError as error:
            raise DataInvalid(f"{where}: {error.body('')['error']['message']}") from None
        return content

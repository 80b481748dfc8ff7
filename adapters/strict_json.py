"""JSON as an upload may hold it: no duplicate keys, no NaN, bounded depth. Knows no adapters."""

import json
import math
from typing import TypeAlias

from weft.adapters.errors import AdapterInvalid

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


class _Refused(ValueError):
    """Raised inside the parser's hooks, where the file's name is not known."""


def parse_object(data: bytes, where: str, max_depth: int) -> dict[str, Json]:
    """The JSON object that `data` holds, in UTF-8, with at most `max_depth` levels.

    Raises AdapterInvalid naming `where` for anything else.
    """
    try:
        value: Json = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        _check(value, max_depth)
    except RecursionError:
        raise AdapterInvalid(where, "JSON is nested too deeply") from None
    except _Refused as refused:
        raise AdapterInvalid(where, str(refused)) from None
    except ValueError:
        raise AdapterInvalid(where, "is not valid JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise AdapterInvalid(where, "must hold one JSON object")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value: dict[str, Json] = {}
    for key, item in pairs:
        if key in value:
            raise _Refused(f"JSON key {key!r} occurs twice")
        value[key] = item
    return value


def _no_constant(name: str) -> float:
    raise _Refused(f"JSON holds {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused("JSON holds a number that is too large")
    return number


def _check(value: Json, max_depth: int) -> None:
    """Refuses deeper levels, and text that no UTF-8 answer could repeat (a lone surrogate)."""
    level: list[Json] = [value]
    for _ in range(max_depth + 1):
        inner: list[Json] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                item.encode()
        if not inner:
            return
        level = inner
    raise _Refused(f"JSON is nested more than {max_depth} levels deep")

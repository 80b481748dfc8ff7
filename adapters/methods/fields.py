"""A configuration's fields: each read with its type and range, each accounted for."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from weft.adapters.checkpoint import CONFIG_NAME
from weft.adapters.errors import AdapterInvalid
from weft.adapters.strict_json import Json

T = TypeVar("T")

_COMMON = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
)


class Fields:
    """Reads a configuration field by field; `finish` refuses whatever is set and was not read.

    An absent or null field takes its default. Every method raises AdapterInvalid naming the field.
    """

    def __init__(self, config: Mapping[str, Json]) -> None:
        self._config = config
        self._read = set(_COMMON)
        task = self.get("task_type")
        if task not in (None, "CAUSAL_LM"):
            raise invalid("task_type", f"{task!r} is not served; only CAUSAL_LM is")

    def get(self, name: str) -> Json:
        """The field as it is in the file, or None."""
        self._read.add(name)
        return self._config.get(name)

    def flag(self, name: str) -> bool:
        """A boolean, false by default."""
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise invalid(name, "must be true or false")

    def integer(self, name: str, default: int) -> int:
        """A positive integer."""
        value = self.get(name)
        return default if value is None else positive_integer(value, name)

    def count(self, name: str, default: int) -> int:
        """An integer that may be 0."""
        value = self.get(name)
        return 0 if type(value) is int and value == 0 else self.integer(name, default)

    def choice(self, name: str, *allowed: str) -> str:
        """One of a few words, the first by default."""
        value = self.get(name)
        if value is None:
            return allowed[0]
        if isinstance(value, str) and value in allowed:
            return value
        raise invalid(name, f"{value!r} is not served; only {', '.join(allowed)} is")

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.get(name)
        return default if value is None else finite_number(value, name)

    def table(self, name: str, entry: Callable[[Json, str], T]) -> dict[str, T]:
        """An object whose values `entry` checks, in the file's order; empty by default."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise invalid(name, "must be an object")
        return {key: entry(item, f"{name}[{key!r}]") for key, item in value.items()}

    def names(self, name: str) -> str | tuple[str, ...] | None:
        """Text (a pattern) or a list of names; None by default."""
        value = self.get(name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, list):
            names = tuple(item for item in value if isinstance(item, str))
            if len(names) == len(value):
                return names
        raise invalid(name, "must be text or a list of names")

    def ignore(self, *names: str) -> None:
        """Accepts fields that change nothing once training is over."""
        self._read.update(names)

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Accepts fields only unset (null, false, empty); `reasons` says why, by name."""
        for name, reason in reasons.items():
            if self.get(name):
                raise invalid(name, reason)

    def finish(self) -> None:
        """Refuses the first field that is set and was neither read nor ignored nor refused."""
        for name, value in self._config.items():
            if name not in self._read and value:
                raise invalid(name, "is a field that this server does not know")


def invalid(field: str, reason: str) -> AdapterInvalid:
    """The refusal of one field of the configuration."""
    return AdapterInvalid(f"{CONFIG_NAME}: {field}", reason)


def positive_integer(value: Json, field: str) -> int:
    """Raises AdapterInvalid unless `value` is an integer of 1 to 2**31 - 1."""
    if type(value) is int and 0 < value < 2**31:
        return value
    raise invalid(field, "must be a positive integer")


def finite_number(value: Json, field: str) -> float:
    """Raises AdapterInvalid unless `value` is a number that float32 holds."""
    if isinstance(value, int | float) and type(value) is not bool and abs(value) < 2.0**127:
        return float(value)
    raise invalid(field, "must be a finite number")

"""Which modules of the base a configuration selects: the rules that all tuners of peft share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from weft.adapters.base import BaseModules
from weft.adapters.methods import saved_modules
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.methods.patterns import Patterns
from weft.adapters.strict_json import Json

Test = Callable[[str], bool]

_ALL_LINEAR = "all-linear"
_ANY_LAYER = r".*?\.[^.]*\.(?P<index>\d+)\."
_NAMED_LAYER = r"(?:^|.*?\.){}\.(?P<index>\d+)\."
_PART_OF_NAME = r"(^|.*\.){}($|\..*)"


@dataclass(frozen=True)
class TargetRule:
    """`target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` as one rule.

    targets: full names or last parts of them, or a pattern of full names, or "all-linear"
    saved: patterns of parts of names; modules that are saved whole are never targets
    """

    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: frozenset[int]
    layer_patterns: tuple[str, ...]
    saved: tuple[str, ...]

    @classmethod
    def read(cls, fields: Fields) -> "TargetRule":
        """Raises AdapterInvalid where the fields contradict each other."""
        targets = fields.names("target_modules")
        layers = _layers(fields.get("layers_to_transform"))
        patterns = fields.names("layers_pattern") or ()
        if not targets:
            raise invalid("target_modules", "must name the modules that were trained")
        if isinstance(targets, str) and (layers or patterns):
            field = "layers_to_transform" if layers else "layers_pattern"
            raise invalid(field, "cannot be combined with a pattern in target_modules")
        if patterns and not layers:
            raise invalid("layers_pattern", "needs layers_to_transform")
        return cls(
            targets,
            fields.names("exclude_modules") or (),
            layers,
            (patterns,) if isinstance(patterns, str) else patterns,
            saved_modules.read(fields),
        )

    def select(self, base: BaseModules) -> frozenset[str]:
        """The names of the base's linears and embeddings that the rule selects.

        Raises AdapterInvalid where there are none.
        """
        if isinstance(self.targets, str) and self.targets.lower() == _ALL_LINEAR:
            linears = (name for name, module in base.items() if module.kind != "embedding")
            return self._allowed(name for name in linears if name != base.head)
        return self.matching(base)

    def matching(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` that the rule selects; raises AdapterInvalid where there are none."""
        included = _names_test(self.targets, "target_modules")
        in_layer = self._layer_test()
        return self._allowed(
            name for name in names if included(name) and (name in self.targets or in_layer(name))
        )

    def _allowed(self, names: Iterable[str]) -> frozenset[str]:
        excluded = _names_test(self.excluded, "exclude_modules")
        patterns = Patterns(saved_modules.FIELD)
        saved = [patterns.compile(text, _PART_OF_NAME) for text in self.saved]
        selected = frozenset(
            name
            for name in names
            if not excluded(name) and not any(patterns.match(part, name) for part in saved)
        )
        if not selected:
            raise invalid("target_modules", "selects no module of this base model")
        return selected

    def _layer_test(self) -> Test:
        if not self.layers:
            return lambda name: True
        patterns = Patterns("layers_pattern")
        layer_patterns = [patterns.compile(text, _NAMED_LAYER) for text in self.layer_patterns]
        layer_patterns = layer_patterns or [patterns.compile(_ANY_LAYER)]

        def in_layer(name: str) -> bool:
            matches = (patterns.match(pattern, name) for pattern in layer_patterns)
            first = next((match for match in matches if match), None)
            return first is not None and int(first["index"]) in self.layers

        return in_layer


def _names_test(names: str | tuple[str, ...], field: str) -> Test:
    if isinstance(names, str):
        patterns = Patterns(field)
        pattern = patterns.compile(names)
        return lambda name: patterns.match(pattern, name, whole=True) is not None
    exact = frozenset(names)
    return lambda name: any(part in exact for part in _tails(name))


def _tails(name: str) -> list[str]:
    """`a.b.c` as `a.b.c`, `b.c`, `c`: what a listed name may be."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _layers(value: Json) -> frozenset[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    layers = [item for item in values if type(item) is int and item >= 0]
    if len(layers) != len(values):
        raise invalid("layers_to_transform", "must be a layer's number or a list of them")
    return frozenset(layers)

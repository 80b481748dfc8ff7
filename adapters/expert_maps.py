"""The linear maps of a base's expert layers, of which a module holds all experts' in one parameter.

Told from what transformers says of such modules; no model is known here by its name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
)

_LITERAL = re.compile(r"[\w.]+")
_EXPERT = "*"


@dataclass(frozen=True)
class ExpertMap:
    """A linear map of each expert of a layer, all in one parameter.

    module, parameter: the names of the layer of experts, and of the parameter in it
    experts: how many there are
    transposed: whether the parameter is [experts, in_features, out_features], and not
        [experts, out_features, in_features]
    former: the names of the linear layers that were in its place before transformers 5, with `*`
        for an expert's number, in the order in which their outputs follow each other; empty where
        that is not known
    refusal: why it cannot be adapted, or None
    """

    module: str
    parameter: str
    experts: int
    in_features: int
    out_features: int
    transposed: bool
    former: tuple[str, ...] = ()
    refusal: str | None = None

    @property
    def name(self) -> str:
        """The parameter's full name."""
        return f"{self.module}.{self.parameter}"

    def former_of(self, expert: int) -> tuple[str, ...]:
        """The names of one expert's former layers."""
        return tuple(name.replace(_EXPERT, str(expert)) for name in self.former)


def is_expert_layer(module: nn.Module) -> bool:
    """Whether it says all that is needed to compute it in another way, as transformers' own do."""
    return all(hasattr(module, flag) for flag in ("has_gate", "has_bias", "is_transposed"))


def parameters_of(layer: nn.Module) -> tuple[str, str]:
    """The names of the parameters of a layer of experts that hold its first and last maps."""
    return ("gate_up_proj" if layer.has_gate else "up_proj", "down_proj")


def expert_maps(model: PreTrainedModel, refusals: Mapping[str, str]) -> dict[str, ExpertMap]:
    """The maps of a model's expert layers by full name, in the model's order.

    refusals: why modules cannot be adapted, by name
    """
    layers = {name: m for name, m in model.named_modules() if is_expert_layer(m)}
    conversions = get_model_conversion_mapping(model) if layers else []
    found = {}
    for module, layer in layers.items():
        parameters: Mapping[str, Tensor] = dict(layer.named_parameters(recurse=False))
        weights = {own: parameters[own] for own in parameters_of(layer) if own in parameters}
        if [weight.dim() for weight in weights.values()] != [3, 3]:
            continue
        for parameter, weight in weights.items():
            transposed = bool(layer.is_transposed)
            experts, width, other = weight.shape
            in_features, out_features = (width, other) if transposed else (other, width)
            name = f"{module}.{parameter}"
            found[name] = ExpertMap(
                module,
                parameter,
                experts,
                in_features,
                out_features,
                transposed,
                () if transposed else _former(name, conversions),
                refusals.get(module),
            )
    return found


def former_modules(model: PreTrainedModel, maps: Mapping[str, ExpertMap]) -> dict[str, str]:
    """Today's names of the modules beside the layers of experts, by their former names."""
    conversions = get_model_conversion_mapping(model) if maps else []
    parents = tuple({f"{m.module.rpartition('.')[0]}." for m in maps.values()})
    names = (name for name, _ in model.named_modules() if name.startswith(parents))
    return {_renamed(name, conversions): name for name in names}


def _former(name: str, conversions: list[WeightTransform]) -> tuple[str, ...]:
    for conversion in conversions:
        sources = _sources(conversion)
        target = conversion.target_patterns[0]
        if sources and name.endswith(target):
            rest = name.removesuffix(target)
            return tuple(
                _renamed(rest + source.removesuffix(".weight"), conversions) for source in sources
            )
    return ()


def _sources(conversion: WeightTransform) -> list[str]:
    """The weights that a conversion stacks, and concatenates by their outputs; else nothing."""
    if not isinstance(conversion, WeightConverter) or len(conversion.target_patterns) != 1:
        return []
    stacked, *joined = conversion.operations
    is_known = (
        isinstance(stacked, MergeModulelist)
        and stacked.dim == 0
        and len(joined) == (len(conversion.source_patterns) > 1)
        and all(isinstance(step, Concatenate) and step.dim == 1 for step in joined)
    )
    return list(conversion.source_patterns) if is_known else []


def _renamed(name: str, conversions: list[WeightTransform]) -> str:
    """The former name of a module, as far as only parts of names were exchanged."""
    for old, new in _renamings(conversions):
        name = name.replace(new, old)
    return name


def _renamings(
    conversions: list[WeightTransform],
) -> Iterator[tuple[str, str]]:
    for conversion in conversions:
        if isinstance(conversion, WeightRenaming):
            old, new = conversion.source_patterns, conversion.target_patterns
            if len(old) == len(new) == 1 and _LITERAL.fullmatch(old[0] + new[0]):
                yield old[0], new[0]

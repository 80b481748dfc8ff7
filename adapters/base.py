"""What lowering may know of the base model: its modules' names, shapes and weights.

Knows no adapter, and never changes a weight.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weft.adapters.errors import AdapterInvalid
from weft.adapters.expert_maps import ExpertMap, expert_maps, former_modules

Kind = Literal["linear", "conv1d", "embedding"]


@runtime_checkable
class Quantized(Protocol):
    """A linear layer whose weight is stored in fewer bits than it is computed in.

    quantization: the name of the way   constants: what is stored beside the weight to read it
    """

    in_features: int
    out_features: int

    @property
    def quantization(self) -> str:
        """See the class."""

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """See the class."""

    def dequantized_weight(self) -> Tensor:
        """`[out_features, in_features]`, floating-point, as it is computed with."""


@dataclass(frozen=True)
class TargetModule:
    """A module of the base that adapters may target.

    in_features, out_features: of a linear map; an embedding has its vocabulary and its width
    weight: gives [out_features, in_features], of an embedding [vocabulary, width], on the base's
        device; dequantised anew at each call where the base is quantised; raises AdapterInvalid
        where the weight is not loaded
    scale: what the module multiplies its output by (gemma's embedding); a delta is scaled alike
    refusal: why it cannot be adapted, or None
    """

    name: str
    kind: Kind
    in_features: int
    out_features: int
    weight: Callable[[], Tensor]
    scale: float = 1.0
    refusal: str | None = None

    @property
    def elements(self) -> int:
        """Number of values of the weight."""
        return self.in_features * self.out_features


@dataclass(frozen=True)
class ParameterOwner:
    """Any module with parameters of its own, in place of which an adapter may bring others.

    shapes: of the parameters by their names in the module, as the module stores them
    refusal: why an adapter cannot, or None
    quantized: its weight can be read but not brought in the form in which the module stores it
    """

    type_name: str
    shapes: Mapping[str, tuple[int, ...]]
    refusal: str | None = None
    quantized: bool = False


@dataclass(frozen=True)
class KVShape:
    """What an attention layer keeps of each token."""

    heads: int
    k_dim: int
    v_dim: int


ReadParameter = Callable[[str, str], Tensor]
"""Gives a parameter by the names of its module and its own; raises AdapterInvalid."""


class BaseModules(Mapping[str, TargetModule]):
    """The base's linear layers and embeddings by full name, in the model's order.

    experts: the linear maps of its layers of experts by full name, in the model's order
    former: today's names of the modules beside those layers by the names before transformers 5
    owners: all modules with parameters, those included   types: all modules' types by name
    parameter: gives a parameter's values, called with the names of its module and its own
    embedding: name of the token embedding, or None   head: name of the output head, or None
    attention: what the attention layers keep, by name, in the order in which they run; empty where
        that is not known
    tied: names of the modules that share one weight (embedding and head of a tied model)
    parameters: number of values of the whole base
    quantization: how linear layers are quantised, or None
    """

    def __init__(
        self,
        targets: Mapping[str, TargetModule],
        *,
        owners: Mapping[str, ParameterOwner],
        types: Mapping[str, str],
        parameter: ReadParameter,
        experts: Mapping[str, ExpertMap] | None = None,
        former: Mapping[str, str] | None = None,
        embedding: str | None = None,
        head: str | None = None,
        attention: Mapping[str, KVShape] | None = None,
        tied: frozenset[str] = frozenset(),
        parameters: int = 0,
        quantization: str | None = None,
    ) -> None:
        self._targets = targets
        self.owners = owners
        self.types = types
        self.parameter = parameter
        self.experts = experts or {}
        self.former = former or {}
        self.embedding = embedding
        self.head = head
        self.attention = attention or {}
        self.tied = tied
        self.parameters = parameters
        self.quantization = quantization

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        refused: Mapping[str, str] | None = None,
        attention: Mapping[str, KVShape] | None = None,
    ) -> "BaseModules":
        """Reads a model that `modules.adapt` has not touched yet; a meta-device model will do.

        refused: why further modules, by name, cannot be adapted   attention: see the class
        """
        refusals = refused or {}
        modules = dict(model.named_modules())
        read = _reader(modules)
        experts = expert_maps(model, refusals)
        targets = {
            name: target
            for name, module in modules.items()
            if (target := _target(name, module, read, refusals.get(name))) is not None
        }
        return cls(
            targets,
            owners=_owners(modules, refusals),
            types={name: type(module).__name__ for name, module in modules.items()},
            parameter=read,
            experts=experts,
            former=former_modules(model, experts),
            embedding=_name_of(model, model.get_input_embeddings()),
            head=head_of(model),
            attention=attention,
            tied=_tied(model, targets),
            parameters=_count(modules),
            quantization=_quantization(modules),
        )

    def with_parameters(self, read: ReadParameter) -> "BaseModules":
        """The same modules with values from `read`."""
        targets = {
            name: replace(target, weight=partial(_weight, read, name, target.kind))
            for name, target in self._targets.items()
        }
        changed = copy(self)
        changed._targets, changed.parameter = targets, read
        return changed

    def __getitem__(self, name: str) -> TargetModule:
        return self._targets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def sides(self, name: str) -> tuple[int, int]:
        """Inputs and outputs of the linear layer, embedding or map of experts of this name."""
        module = self.experts.get(name) or self._targets[name]
        return module.in_features, module.out_features

    def weight_of(self, name: str) -> tuple[str, str]:
        """The names of the module and the parameter that operations at `name` change."""
        experts = self.experts.get(name)
        return (name, "weight") if experts is None else (experts.module, experts.parameter)

    def explain(self, name: str) -> str:
        """Why `name` cannot be adapted, in words for the adapter's owner."""
        if name in self._targets:
            return self._targets[name].refusal or "can be adapted"
        if name in self.types:
            return f"the base's {name} is a {self.types[name]}, not a linear layer or embedding"
        return f"the base has no module {name}"

    def refuse_quantized(self, name: str, method: str) -> None:
        """Raises AdapterInvalid where the weight is not the one that the trainer decomposed."""
        if self.owners[name].quantized:
            reason = f"{method} decomposes the base's weight, which must not be quantised for it"
            raise AdapterInvalid(name, reason)


def head_of(model: PreTrainedModel) -> str | None:
    """The full name of the model's output head."""
    return _name_of(model, model.get_output_embeddings())  # type: ignore[no-untyped-call]


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _target(
    name: str, module: nn.Module, read: ReadParameter, refusal: str | None
) -> TargetModule | None:
    scale = 1.0
    kind: Kind
    match module:
        case nn.Linear():
            kind, widths = "linear", (module.in_features, module.out_features)
        case Conv1D():
            kind, widths = "conv1d", (module.nx, module.nf)
        case nn.Embedding():
            kind, widths = "embedding", (module.num_embeddings, module.embedding_dim)
            scale = _scale(module) or 1.0
            refusal = refusal or _embedding_refusal(module)
        case _:
            return None
    weight = partial(_weight, read, name, kind)
    return TargetModule(name, kind, *widths, weight, scale=scale, refusal=refusal)


def _owners(
    modules: Mapping[str, nn.Module], refusals: Mapping[str, str]
) -> dict[str, ParameterOwner]:
    owners = {}
    for name, module in modules.items():
        parameters = module.named_parameters(recurse=False)
        shapes = {own: _shape(module, own, parameter) for own, parameter in parameters}
        if shapes:
            owners[name] = ParameterOwner(
                type(module).__name__, shapes, refusals.get(name), isinstance(module, Quantized)
            )
    return owners


def _shape(module: nn.Module, name: str, parameter: Tensor) -> tuple[int, ...]:
    """Of a parameter of the module; of a quantised one, before it was quantised."""
    if name == "weight" and isinstance(module, Quantized):
        return (module.out_features, module.in_features)
    return tuple(parameter.shape)


def _quantization(modules: Mapping[str, nn.Module]) -> str | None:
    ways = (module.quantization for module in modules.values() if isinstance(module, Quantized))
    return next(ways, None)


def _count(modules: Mapping[str, nn.Module]) -> int:
    """Values of all parameters, shared ones once."""
    sizes = {
        id(parameter): math.prod(_shape(module, own, parameter))
        for module in modules.values()
        for own, parameter in module.named_parameters(recurse=False)
    }
    return sum(sizes.values())


def _embedding_refusal(module: nn.Embedding) -> str | None:
    """Only a plain lookup, or one times a known scale, can take a low-rank update of its rows."""
    if type(module).forward is nn.Embedding.forward or _scale(module) is not None:
        return None
    return f"the base's {type(module).__name__} computes its rows in its own way"


def _scale(module: nn.Embedding) -> float | None:
    for attribute in ("scalar_embed_scale", "embed_scale"):
        scale = getattr(module, attribute, None)
        if isinstance(scale, int | float):
            return float(scale)
    return None


def _reader(modules: Mapping[str, nn.Module]) -> ReadParameter:
    def read(module: str, name: str) -> Tensor:
        owner = modules[module]
        if name == "weight" and isinstance(owner, Quantized):
            return owner.dequantized_weight()
        value = getattr(owner, name, None)
        if not isinstance(value, Tensor) or value.is_meta or not value.is_floating_point():
            raise AdapterInvalid(
                module, f"needs the base's {name}, which is not loaded in full here"
            )
        return value.detach()

    return read


def _weight(read: ReadParameter, name: str, kind: Kind) -> Tensor:
    weight = read(name, "weight")
    return weight.T if kind == "conv1d" else weight


def _tied(model: nn.Module, targets: Mapping[str, TargetModule]) -> frozenset[str]:
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if name in targets:  # a weight may be read as a new tensor each time; its parameter is one
            names.setdefault(id(module._parameters["weight"]), []).append(name)
    return frozenset(name for shared in names.values() if len(shared) > 1 for name in shared)

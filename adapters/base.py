"""What lowering may know of the base model: its modules' names, shapes and weights.

Knows no adapter, and never changes a weight.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weft.adapters.errors import AdapterInvalid

Kind = Literal["linear", "conv1d", "embedding"]


@dataclass(frozen=True)
class TargetModule:
    """A module of the base that adapters may target.

    in_features, out_features: of a linear map; an embedding has its vocabulary and its width
    weight: gives [out_features, in_features], of an embedding [vocabulary, width], on the base's
        device; raises AdapterInvalid where the weight is not loaded
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


class BaseModules(Mapping[str, TargetModule]):
    """The base's linear layers and embeddings by full name, in the model's order.

    head: name of the output head, or None
    tied: names of the modules that share one weight (embedding and head of a tied model)
    parameters: number of values of the whole base
    """

    def __init__(
        self,
        targets: Mapping[str, TargetModule],
        *,
        head: str | None = None,
        tied: frozenset[str] = frozenset(),
        parameters: int = 0,
        others: Mapping[str, str] | None = None,
    ) -> None:
        self._targets = targets
        self._others = others or {}
        self.head = head
        self.tied = tied
        self.parameters = parameters

    @classmethod
    def of(cls, model: PreTrainedModel, refused: Mapping[str, str] | None = None) -> "BaseModules":
        """Reads a model that `modules.adapt` has not touched yet; a meta-device model will do.

        `refused` says of further modules, by name, why they cannot be adapted.
        """
        targets: dict[str, TargetModule] = {}
        others: dict[str, str] = {}
        for name, module in model.named_modules():
            target = _target(name, module, (refused or {}).get(name))
            if target is not None:
                targets[name] = target
            else:
                others[name] = type(module).__name__
        return cls(
            targets,
            head=head_of(model),
            tied=_tied(model, targets),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            others=others,
        )

    def with_weights(self, read: Callable[[str], Tensor]) -> "BaseModules":
        """The same modules with weights from `read`, called with a module's name."""
        targets = {
            name: replace(target, weight=partial(read, name))
            for name, target in self._targets.items()
        }
        return BaseModules(
            targets,
            head=self.head,
            tied=self.tied,
            parameters=self.parameters,
            others=self._others,
        )

    def __getitem__(self, name: str) -> TargetModule:
        return self._targets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def explain(self, name: str) -> str:
        """Why `name` cannot be adapted, in words for the adapter's owner."""
        if name in self._targets:
            return self._targets[name].refusal or "can be adapted"
        if name in self._others:
            return f"the base's {name} is a {self._others[name]}, not a linear layer or embedding"
        return f"the base has no module {name}"


def head_of(model: PreTrainedModel) -> str | None:
    """The full name of the model's output head."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return next((name for name, module in model.named_modules() if module is head), None)


def _target(name: str, module: nn.Module, refusal: str | None) -> TargetModule | None:
    if isinstance(module, nn.Linear):
        return TargetModule(
            name,
            "linear",
            module.in_features,
            module.out_features,
            _weight(name, module),
            refusal=refusal,
        )
    if isinstance(module, Conv1D):
        return TargetModule(
            name,
            "conv1d",
            module.nx,
            module.nf,
            _weight(name, module, transposed=True),
            refusal=refusal,
        )
    if isinstance(module, nn.Embedding):
        return TargetModule(
            name,
            "embedding",
            module.num_embeddings,
            module.embedding_dim,
            _weight(name, module),
            scale=_scale(module) or 1.0,
            refusal=refusal or _embedding_refusal(module),
        )
    return None


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


def _weight(name: str, module: nn.Module, *, transposed: bool = False) -> Callable[[], Tensor]:
    def read() -> Tensor:
        weight = module.weight
        if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
            raise AdapterInvalid(name, "needs the base's weight, which is not loaded in full here")
        return weight.detach().T if transposed else weight.detach()

    return read


def _tied(model: nn.Module, targets: Mapping[str, TargetModule]) -> frozenset[str]:
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if name in targets:
            names.setdefault(id(module.weight), []).append(name)
    return frozenset(name for shared in names.values() if len(shared) > 1 for name in shared)

"""What every method that changes linear layers reads alike. Knows no method's formula."""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods import base_copies, biases, saved_modules
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.methods.targets import TargetRule
from weft.adapters.operations import Dense, LowRank, Operation, Sparse
from weft.adapters.plan import AdapterPlan
from weft.adapters.tensors import all_finite

_ROUNDING = 1e-6


class LinearAdapter:
    """The files of one adapter of linear layers, taken apart.

    The order of use: the method reads its fields; `modules` finishes them and gives the layers;
    their tensors are taken and operations added; `plan`.

    conv1d: whether the method can change a Conv1D
    prefix: what peft's names for the method's parts begin with, where not the method's name
    """

    def __init__(
        self,
        method: str,
        checkpoint: Checkpoint,
        tensors: Mapping[str, Tensor],
        base: BaseModules,
        *,
        conv1d: bool = False,
        prefix: str | None = None,
    ) -> None:
        self.fields = Fields(checkpoint.config)
        self.base = base
        self._method = method
        self._prefix = prefix or method
        self._biases: dict[str, Tensor] = {}
        self._kinds = ("linear", "conv1d") if conv1d else ("linear",)
        self._draft = Draft(checkpoint, tensors, base)

    def modules(self) -> list[TargetModule]:
        """The layers that the configuration selects, in the base's order.

        Raises AdapterInvalid for a field that is set and was not read, or a module that the method
        cannot change.
        """
        fields = self.fields
        fields.flag("fan_in_fan_out")  # how the base stores a weight; what is computed is the same
        trained = biases.read(fields, self._prefix)
        saved = saved_modules.read(fields)
        fields.ignore("init_weights")
        selected = TargetRule.read(fields).select(self.base)
        fields.refuse({"layer_replication": "a base with replicated layers is another model"})
        fields.finish()
        for name in selected:
            if self.base[name].refusal:
                raise invalid("target_modules", f"selects {name}, but {self.base.explain(name)}")
            if self.base[name].kind not in self._kinds:
                kind = self.base[name].kind
                reason = f"selects {name}, of kind {kind}, which {self._method} cannot change"
                raise invalid("target_modules", reason)
        saved_modules.replace(self._draft, saved)
        self._biases = biases.take(self._draft, trained, selected)
        return [self.base[name] for name in self.base if name in selected]

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor of this name that was not taken yet."""
        return name in self._draft.named

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that was not taken yet."""
        return self._draft.named.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor that was not taken yet, in the file."""
        return self._draft.named.dtype(name)

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of the file in float32; raises AdapterInvalid where it is not as it must be."""
        return self._draft.named.take(name, shape).float()

    def take_integers(self, name: str, *shape: int, below: int) -> Tensor:
        """A tensor of indices as int64; raises AdapterInvalid for one out of `[0, below)`."""
        values = self._draft.named.take(name, shape, integers=True).long()
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < below):
            raise self.refusal(name, f"has an index outside of 0 to {below - 1}")
        return values

    def biases(self, module: TargetModule) -> tuple[Tensor, Tensor] | None:
        """The base's bias and the adapter's, which are mostly the same; None where there is none.

        For methods that change them: an `OutputShift` is then theirs to add.
        """
        if "bias" not in self.base.owners[module.name].shapes:
            return None
        own = self.base.parameter(module.name, "bias").to("cpu", torch.float32)
        return own, self._biases.pop(module.name, own)

    def refusal(self, name: str, reason: str) -> AdapterInvalid:
        """The refusal of a tensor, by the name that the file gives it."""
        return self._draft.named.refusal(name, reason)

    def add(self, module: TargetModule, *ops: Operation) -> None:
        """Adds operations on a module; raises AdapterInvalid where a value is not finite."""
        for op in ops:
            tensors = [tensor.contiguous() for tensor in op.tensors]
            if not all(map(all_finite, tensors)):
                raise AdapterInvalid(module.name, "its update is not finite: values too large")
            self._draft.add(module.name, op.with_tensors(tensors))

    def plan(self) -> AdapterPlan:
        """The finished plan; raises AdapterInvalid for an unused tensor, or where all is zero."""
        for module, bias in self._biases.items():
            self._draft.replace(module, "bias", bias)
        base_copies.take(self._draft, {})
        return self._draft.plan(self._method)


def weight_of(module: TargetModule) -> Tensor:
    """The base's weight, `[out_features, in_features]` in float32 on the host.

    Raises AdapterInvalid where it is not loaded: the update cannot be found without it.
    """
    return module.weight().to("cpu", torch.float32)


def low_rank(a: Tensor, b: Tensor) -> LowRank | Dense:
    """`y += (x aᵀ) b` in the smaller of two forms: the pair, or its product.

    A pair whose terms cancel stays one, of which it can be said that it has no effect.
    """
    pair = LowRank(a, b)
    is_smaller = a.numel() + b.numel() <= a.shape[1] * b.shape[1]
    return pair if is_smaller or not pair.has_effect() else Dense(b.T @ a)


def change(new: Tensor, old: Tensor) -> Tensor:
    """`new - old`, or zeros where the two differ by rounding alone."""
    difference = new - old
    return difference * bool(difference.norm() > _ROUNDING * old.norm())


def sparse(module: TargetModule, positions: Tensor, values: Tensor) -> Sparse | Dense:
    """`y += x Sᵀ` in the smaller of two forms; S holds `values` at flat `positions` of the weight.

    Values of one position are summed.
    """
    used, places = torch.unique(positions, return_inverse=True)
    values = torch.zeros(len(used)).index_add(0, places, values)
    if 2 * len(used) + module.out_features + 1 > module.elements:
        matrix = torch.zeros(module.elements).index_put((used,), values)
        return Dense(matrix.view(module.out_features, module.in_features))
    per_row = torch.bincount(used // module.in_features, minlength=module.out_features)
    starts = torch.zeros(module.out_features + 1, dtype=torch.int32)
    starts[1:] = per_row.cumsum(0)
    return Sparse(starts, (used % module.in_features).int(), values)


def parts(module: TargetModule, count: int, field: str) -> tuple[int, int]:
    """Input and output width of one of `count` equal parts; `field` is named where there is a rest.

    Raises AdapterInvalid.
    """
    widths = module.in_features, module.out_features
    if any(width % count for width in widths):
        raise invalid(field, f"{count} does not divide the widths of {module.name}, {widths}")
    return widths[0] // count, widths[1] // count

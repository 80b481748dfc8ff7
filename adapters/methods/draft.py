"""A plan in the making: the file's tensors still to be used, and the operations built from others.

Every method lowers through a draft, so that no tensor is forgotten and no version changes nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME
from weft.adapters.methods.names import NamedTensors
from weft.adapters.operations import Dense, Operation, OutputShift, Override, RowOverride
from weft.adapters.plan import AdapterPlan
from weft.adapters.tensors import all_finite


class Draft:
    """Takes tensors by their normal names and collects operations by module.

    named: the tensors that were not taken yet   base: what they are for
    """

    def __init__(
        self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules
    ) -> None:
        self.base = base
        self.named = NamedTensors(tensors)
        self._digest = checkpoint.digest
        self._ops: dict[str, list[Operation]] = {}
        self._overrides: dict[str, dict[str, Tensor]] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor in float32, which is then used; raises AdapterInvalid where its shape differs.

        Raises AdapterInvalid also where there is none.
        """
        return self.named.take(name, shape).float()

    def add(self, module: str, op: Operation) -> None:
        """Adds an operation on a module.

        Raises AdapterInvalid where a value is not finite (one of the file times a large scaling),
        or the module has an operation of this kind already.
        """
        ops = self._ops.setdefault(module, [])
        if any(type(op) is type(other) for other in ops):
            raise AdapterInvalid(module, "is changed twice in one way")
        floats = (tensor for tensor in op.tensors if tensor.is_floating_point())
        if not all(map(all_finite, floats)):
            raise AdapterInvalid(module, "overflows when multiplied by its scaling")
        ops.append(op)

    def replace(self, module: str, parameter: str, value: Tensor) -> None:
        """Lets a module compute with another parameter in place of the base's.

        value: as the base stores it; nothing happens where it is equal to the base's, up to the
        rounding of either dtype. Raises AdapterInvalid where the module cannot be adapted.
        """
        own = self.base.parameter(module, parameter).cpu()
        if equal(value, own):
            return
        refusal = self.base.owners[module].refusal
        if refusal is not None:
            raise AdapterInvalid(f"{module}.{parameter}", refusal)
        if parameter == "bias" and self._is_linear(module):
            self.add(module, OutputShift(value.float() - own.float()))
        elif parameter == "weight" and self.base.owners[module].quantized:
            self.add(module, Dense(value.float() - own.float()))
        elif parameter == "weight" and self._has_rows(module):
            self._replace_rows(module, value, own)
        else:
            self._overrides.setdefault(module, {})[parameter] = value.to(own.dtype)

    def plan(self, method: str) -> AdapterPlan:
        """The finished plan.

        Raises AdapterInvalid where a tensor was not used, or no operation has an effect.
        """
        for name in self.named:
            raise self.named.refusal(name, f"is not a tensor that {method} uses on this base")
        for module, parameters in self._overrides.items():
            self.add(module, Override(parameters))
        if not any(op.has_effect() for ops in self._ops.values() for op in ops):
            reason = "changes nothing: every update is zero (not trained?)"
            raise AdapterInvalid(WEIGHTS_NAME, reason)
        return AdapterPlan(
            self._digest, method, {module: tuple(ops) for module, ops in self._ops.items()}
        )

    def _is_linear(self, module: str) -> bool:
        return module in self.base and self.base[module].kind != "embedding"

    def _has_rows(self, module: str) -> bool:
        """Whether single rows of the weight can be replaced."""
        if module == self.base.head:
            return "bias" not in self.base.owners[module].shapes
        return module in self.base and self.base[module].kind == "embedding"

    def _replace_rows(self, module: str, value: Tensor, own: Tensor) -> None:
        """By the rows that differ, where that takes less memory than the whole."""
        same = (value.to(own.dtype) == own).all(dim=1) | (value == own.to(value.dtype)).all(dim=1)
        ids = (~same).nonzero().flatten()
        if 2 * len(ids) > len(own):
            self._overrides.setdefault(module, {})["weight"] = value.to(own.dtype)
        else:
            self.add(module, RowOverride(ids, value[ids].float() * self.base[module].scale))


def equal(value: Tensor, own: Tensor) -> bool:
    """Equal as they are, or after rounding to the other's dtype."""
    return torch.equal(value.to(own.dtype), own) or torch.equal(value, own.to(value.dtype))

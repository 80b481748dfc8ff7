"""A plan in the making: the file's tensors still to be used, and the operations built from others.

Every method lowers through a draft, so that no tensor is forgotten and no version changes nothing.
"""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME
from weft.adapters.methods.names import NamedTensors
from weft.adapters.operations import Operation
from weft.adapters.plan import AdapterPlan


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

    def add(self, module: str, op: Operation) -> None:
        """Adds an operation on a module; ValueError at the end if it is the second of its kind."""
        self._ops.setdefault(module, []).append(op)

    def plan(self, method: str) -> AdapterPlan:
        """The finished plan.

        Raises AdapterInvalid where a tensor was not used, or no operation has an effect.
        """
        for name in self.named:
            raise self.named.refusal(name, f"is not a tensor that {method} uses on this base")
        if not any(op.has_effect() for ops in self._ops.values() for op in ops):
            reason = "changes nothing: every update is zero (not trained?)"
            raise AdapterInvalid(WEIGHTS_NAME, reason)
        return AdapterPlan(
            self._digest, method, {module: tuple(ops) for module, ops in self._ops.items()}
        )

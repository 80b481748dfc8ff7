"""BEFT (arXiv:2509.15974): a trained bias, also where the base has none."""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.linear_adapter import LinearAdapter
from weft.adapters.operations import OutputShift
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One vector for each selected module, which is added to the base's own bias."""
    adapter = LinearAdapter("beft", checkpoint, tensors, base)
    for module in adapter.modules():
        bias = adapter.take(f"{module.name}.beft_bias", 1, module.out_features)
        adapter.add(module, OutputShift(bias.flatten()))
    return adapter.plan()

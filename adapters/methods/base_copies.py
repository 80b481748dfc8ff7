"""Whole embeddings and heads that trainers save beside an adapter, changed or not.

Equal copies are dropped. Nothing here is ever written into the base.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.methods.names import NamedTensors
from weft.adapters.operations import LowRank

_SUFFIXES = (".base_layer.weight", ".weight")


def module_of(name: str, base: BaseModules) -> str | None:
    """The embedding or head that a tensor of this name is a copy of, or None."""
    for suffix in _SUFFIXES:
        module = name.removesuffix(suffix)
        if module != name and module in base:
            return module if base[module].kind == "embedding" or module == base.head else None
    return None


def drop(named: NamedTensors, base: BaseModules, changes: Mapping[str, LowRank]) -> None:
    """Takes every copy out of `named`.

    changes: what training added to the base's weights before it began, by module
    Raises AdapterInvalid where a copy is not the base's own weight.
    """
    for name in list(named):
        module = module_of(name, base)
        if module is None:
            continue
        weight = base[module].weight().cpu()
        rows, base_rows = named.shape(name)[0], weight.shape[0]
        if rows != base_rows:
            raise named.refusal(
                name, f"{module.rpartition('.')[2]} has {rows} rows, base has {base_rows}"
            )
        copy = named.take(name, tuple(weight.shape))
        change = changes.get(module)
        same = _equal(copy, weight) if change is None else _close(copy, weight, change)
        if not same:
            raise named.refusal(
                name, "differs from the base's weight: a retrained or foreign one is not served"
            )


def _equal(copy: Tensor, weight: Tensor) -> bool:
    """Equal as they are, or after rounding to the other's dtype."""
    return torch.equal(copy.to(weight.dtype), weight) or torch.equal(copy, weight.to(copy.dtype))


def _close(copy: Tensor, weight: Tensor, change: LowRank) -> bool:
    """Equal to the changed weight up to rounding, in the norm of the whole."""
    expected = weight.float() + change.b.T @ change.a
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in (copy, weight))
    error = torch.linalg.vector_norm(copy.float() - expected)
    return bool(error <= (epsilon + 1e-5) * torch.linalg.vector_norm(expected))

"""Whole embeddings and heads that trainers save beside an adapter, changed or not.

Nothing here is ever written into the base.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.methods.draft import Draft, equal
from weft.adapters.operations import LowRank

_SUFFIXES = (".base_layer.weight", ".weight")


def module_of(name: str, base: BaseModules) -> str | None:
    """The embedding or head that a tensor of this name is a copy of, or None."""
    for suffix in _SUFFIXES:
        module = name.removesuffix(suffix)
        if module != name and module in base:
            return module if base[module].kind == "embedding" or module == base.head else None
    return None


def take(draft: Draft, changes: Mapping[str, LowRank]) -> None:
    """Takes every copy out of a draft; one that differs is what this adapter computes with.

    changes: what training added to the base's weights before it began, by module
    Raises AdapterInvalid where it is not clear what a copy is for.
    """
    base, named = draft.base, draft.named
    copies = {name: module for name in named if (module := module_of(name, base)) is not None}
    unsaved = ", ".join(sorted(base.tied.difference(copies.values())))
    for name, module in copies.items():
        own = base[module].weight().cpu()
        rows = named.shape(name)[0]
        if rows != len(own):
            last = module.rpartition(".")[2]
            raise named.refusal(name, f"{last} has {rows} rows, base has {len(own)}")
        copy = named.take(name, tuple(own.shape))
        if module in changes:
            if not _close(copy, own, changes[module]):
                raise named.refusal(name, "differs from the base's weight as training changed it")
        elif module in base.tied and unsaved and not equal(copy, own):
            raise named.refusal(name, f"differs from the base's weight, which {unsaved} shares")
        else:
            draft.replace(module, "weight", copy)


def _close(copy: Tensor, weight: Tensor, change: LowRank) -> bool:
    """Equal to the changed weight up to rounding, in the norm of the whole."""
    expected = weight.float() + change.b.T @ change.a
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in (copy, weight))
    error = torch.linalg.vector_norm(copy.float() - expected)
    return bool(error <= (epsilon + 1e-5) * torch.linalg.vector_norm(expected))

"""FRoD (doi:10.1609/aaai.v40i31.39813): `W' = U (S + Λ) Vᵀ`, by a basis V of all modules of a kind.

V is in the file. U follows from it: the columns of `W V⁻ᵀ` at unit length, so that S = 0 and the
lengths as Λ give the base's weight again.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, change, weight_of
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan

_DRAWN = "V and the positions of S are not in the file, and need not come out the same elsewhere"
_NO_LENGTH = 1e-12


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One matrix for each selected module: the change from the base's weight."""
    adapter = LinearAdapter("frod", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    fields.ignore(
        "frod_dropout",
        "progressbar",
        "projection_prng_key",
        "regularization_alpha",
        "runtime_offload_base_weight",
        "sparse_rate",
    )
    if fields.get("save_projection") is False:
        raise invalid("save_projection", _DRAWN)
    fields.flag("save_projection")
    shared: dict[str, tuple[Tensor, Tensor]] = {}
    for module in adapter.modules():
        kind = _kind(module.name)
        if kind not in shared:
            shared[kind] = _take_shared(adapter, kind, module)
        basis, places = shared[kind]
        middle = _take_middle(adapter, module, places)
        weight = weight_of(module)
        if len(basis) != module.in_features:
            raise invalid("target_modules", f"selects several widths of {kind}")
        adapted = (_outer(basis, weight) @ middle) @ basis.T
        adapter.add(module, Dense(change(adapted, weight)))
    return adapter.plan()


def _kind(module: str) -> str:
    """What the file calls the modules that share a basis: the last parts of their names."""
    parts = module.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    if parts[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{parts[-2]}_{parts[-1]}"


def _take_shared(adapter: LinearAdapter, kind: str, module: TargetModule) -> tuple[Tensor, Tensor]:
    """V, `[width, width]`, and the rows and columns of S's values, int64 `[2, count]`."""
    width, name = module.in_features, f"frod_V.{kind}"
    dtype, own = adapter.dtype(name), module.weight().dtype
    if dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(own).eps:
        reason = f"was rounded to {dtype}, less than the base's {own}: no U follows from it"
        raise adapter.refusal(name, reason)
    basis = adapter.take(name, width, width)
    count = adapter.shape(f"frod_s_indices.{kind}")[-1]
    places = adapter.take_integers(f"frod_s_indices.{kind}", 2, count, below=width)
    sizes = adapter.take_integers(f"frod_s_size.{kind}", 2, below=width + 1)
    if not bool((sizes == width).all()):
        raise adapter.refusal(f"frod_s_size.{kind}", f"is {sizes.tolist()}, V needs {width} twice")
    return basis, places


def _take_middle(adapter: LinearAdapter, module: TargetModule, places: Tensor) -> Tensor:
    """S + Λ."""
    lengths = adapter.take(f"{module.name}.frod_lambda_l", module.in_features)
    values = adapter.take(f"{module.name}.frod_lambda_s_values", places.shape[1])
    return torch.diag(lengths).index_put(tuple(places), values, accumulate=True)


def _outer(basis: Tensor, weight: Tensor) -> Tensor:
    """U, `[out_features, in_features]`."""
    basis, weight = basis.double(), weight.double()
    try:
        columns = torch.linalg.solve(basis, weight.T).T
    except RuntimeError:  # the basis is singular
        columns = weight @ torch.linalg.pinv(basis, rtol=1e-6).T
    lengths = torch.linalg.vector_norm(columns, dim=0)
    long = lengths > _NO_LENGTH
    return torch.where(long, columns / lengths.where(long, 1), 0).float()

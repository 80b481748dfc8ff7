"""UniLoRA (arXiv:2506.00799): `y += B A x`, whose values are all taken from one vector.

`A = θ[indices] ∘ scales`, and B alike.
"""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module."""
    adapter = LinearAdapter("unilora", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    fields.ignore("proj_seed", "unilora_dropout", "init_theta_d_bound")
    rank, length = fields.integer("r", 4), fields.integer("theta_d_length", 256)
    if not fields.flag("save_indices"):
        reason = (
            "the indices are not in the file, but drawn from a seed, which need not give the same "
            "elsewhere; save them with save_indices=True"
        )
        raise invalid("save_indices", reason)
    modules = adapter.modules()
    values = adapter.take("unilora_theta_d", length)

    def chosen(name: str, part: str, *shape: int) -> Tensor:
        indices = adapter.take_integers(f"{name}.unilora_indices_{part}", *shape, below=length)
        return values[indices] * adapter.take(f"{name}.unilora_scales_{part}", *shape)

    for module in modules:
        a = chosen(module.name, "A", rank, module.in_features)
        b = chosen(module.name, "B", module.out_features, rank)
        adapter.add(module, low_rank(a, b.T))
    return adapter.plan()

"""AdaLoRA (arXiv:2303.10512): `y += lora_alpha / (init_r + 1e-5) · B (E ∘ (A x))`.

Training prunes rows of E; the file holds what is left, which may be nothing in some modules.
"""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank
from weft.adapters.methods.names import normal_name
from weft.adapters.plan import AdapterPlan
from weft.adapters.strict_json import Json

_TRAINING_ONLY = (
    "beta1",
    "beta2",
    "corda_config",
    "deltaT",
    "ensure_weight_tying",
    "eva_config",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "monteclora_config",
    "orth_reg_weight",
    "qalora_group_size",
    "r",
    "target_r",
    "tfinal",
    "tinit",
    "total_step",
    "use_rslora",
    "velora_config",
)


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module that has any rank left."""
    adapter = LinearAdapter("adalora", checkpoint, tensors, base, conv1d=True, prefix="lora")
    fields = adapter.fields
    fields.ignore(*_TRAINING_ONLY)
    initial = fields.integer("init_r", 12)
    alpha = fields.number("lora_alpha", 8)
    if alpha <= 0:
        raise invalid("lora_alpha", "must be positive")
    ranks = {normal_name(name): rank for name, rank in fields.table("rank_pattern", _kept).items()}
    for module in adapter.modules():
        rank = ranks.get(f"{module.name}.lora_E", initial)
        a = adapter.take(f"{module.name}.lora_A", rank, module.in_features)
        values = adapter.take(f"{module.name}.lora_E", rank, 1)
        b = adapter.take(f"{module.name}.lora_B", module.out_features, rank)
        if rank:
            adapter.add(module, low_rank(a * values, b.T * (alpha / (initial + 1e-5))))
    return adapter.plan()


def _kept(value: Json, field: str) -> int:
    """How many of a module's ranks are left."""
    if isinstance(value, list) and all(isinstance(kept, bool) for kept in value):
        return value.count(True)
    raise invalid(field, "must be a list of true and false")

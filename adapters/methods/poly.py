"""Poly (arXiv:2202.13914): `y += B_t A_t x / r`, mixed for a task t from a few shared skills.

A version answers for one task. Where the file holds several, the configuration must say which, in
the field `task_id`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank, parts
from weft.adapters.plan import AdapterPlan

_EPSILON = 1e-12


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module."""
    adapter = LinearAdapter("poly", checkpoint, tensors, base)
    fields = adapter.fields
    fields.choice("poly_type", "poly")
    rank, tasks = fields.integer("r", 8), fields.integer("n_tasks", 1)
    skills, splits = fields.integer("n_skills", 4), fields.integer("n_splits", 1)
    task = _task(fields, tasks)
    for module in adapter.modules():
        name = module.name
        width_in, width_out = parts(module, splits, "n_splits")
        logits = adapter.take(f"{name}.poly_router.module_logits", tasks, splits * skills)
        shares = logits[task].view(splits, skills).sigmoid()
        shares = shares / (shares.sum(-1, keepdim=True) + _EPSILON)
        all_a = adapter.take(f"{name}.poly_lora_A", splits, skills, width_in, rank)
        all_b = adapter.take(f"{name}.poly_lora_B", splits, skills, rank, width_out)
        a = torch.einsum("qs,qsdr->rqd", shares, all_a).flatten(1)
        b = torch.einsum("qs,qsrd->rqd", shares, all_b).flatten(1)
        adapter.add(module, low_rank(a, b / rank))
    return adapter.plan()


def _task(fields: Fields, tasks: int) -> int:
    if fields.get("task_id") is None and tasks > 1:
        raise invalid("n_tasks", f"is {tasks}: add the field task_id, the number of one of them")
    task = fields.count("task_id", 0)
    if task >= tasks:
        raise invalid("task_id", f"must be below n_tasks, {tasks}")
    return task

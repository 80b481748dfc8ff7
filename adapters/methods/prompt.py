"""Soft prompts: trained rows that stand before the prompt's own, as if they had been embedded.

Prompt tuning, P-tuning, multitask prompt tuning and CPT differ in training only: their files hold
the rows as the base is given them, those of multitask tuning as factors.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.operations import VirtualTokens
from weft.adapters.plan import AdapterPlan

ROWS = "prompt_embeddings"
_COLUMNS_OF_TASKS, _ROWS_OF_TASKS = "prefix_task_cols", "prefix_task_rows"
_TRAINING_ONLY = (
    "cpt_mask",
    "cpt_token_ids",
    "cpt_tokens_type_mask",
    "encoder_dropout",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_reparameterization_type",
    "opt_loss_decay_factor",
    "opt_projection_epsilon",
    "opt_projection_format_epsilon",
    "opt_weighted_loss_type",
    "prompt_tuning_init",
    "prompt_tuning_init_state_dict_path",
    "prompt_tuning_init_task",
    "prompt_tuning_init_text",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
)
_OF_THE_BASE = ("num_attention_heads", "num_layers", "token_dim")


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """`VirtualTokens` of the base's embedding, in float32.

    Raises AdapterInvalid unless the file holds rows of this base's width, as many as configured.
    """
    fields = Fields(checkpoint.config)
    count = virtual_tokens(fields)
    fields.ignore(*_TRAINING_ONLY, *_OF_THE_BASE, "num_ranks", "num_tasks", "task_id")
    fields.finish()
    if base.embedding is None:
        raise invalid("peft_type", "needs a base with a token embedding")
    draft = Draft(checkpoint, tensors, base)
    shape = (count, base[base.embedding].out_features)
    rows = draft.take(ROWS, *shape)
    method = str(checkpoint.config["peft_type"])
    if method == "MULTITASK_PROMPT_TUNING":
        rows = rows * _factors(draft, fields, shape)
    draft.add(base.embedding, VirtualTokens(rows.contiguous()))
    return draft.plan(method.lower())


def virtual_tokens(fields: Fields) -> int:
    """How many positions stand before the prompt, from fields that all prompt methods share."""
    submodules = fields.get("num_transformer_submodules")
    if submodules not in (None, 1):
        raise invalid("num_transformer_submodules", "must be 1: the base has no encoder")
    fields.refuse({"modules_to_save": "whole modules beside a prompt are not served"})
    if fields.get("num_virtual_tokens") is None:
        raise invalid("num_virtual_tokens", "is missing")
    return fields.integer("num_virtual_tokens", 1)


def _factors(draft: Draft, fields: Fields, shape: tuple[int, int]) -> Tensor:
    """What the shared rows of multitask tuning are multiplied by for the one task that is served.

    peft is told the task with each call; here it is a field of the configuration, which peft
    ignores, so that each task is a version of its own.
    """
    tasks, ranks = fields.integer("num_tasks", 1), fields.integer("num_ranks", 1)
    task = fields.get("task_id")
    if task is None and tasks > 1:
        reason = (
            f"is missing: the file holds {tasks} tasks, say which one to serve (0 is the first)"
        )
        raise invalid("task_id", reason)
    task = task or 0
    if type(task) is not int or not 0 <= task < tasks:
        raise invalid("task_id", f"must be a number from 0 to {tasks - 1}")
    count, width = shape
    columns = draft.take(_COLUMNS_OF_TASKS, tasks, count, ranks)[task]
    rows = draft.take(_ROWS_OF_TASKS, tasks, ranks, width)[task]
    return torch.matmul(columns, rows)

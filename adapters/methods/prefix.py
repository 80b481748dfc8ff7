"""Prefix tuning and Cartridge: keys and values of positions before the prompt's first.

Their files hold them as they lie in a cache, one row a position, with the projection of training
applied already.
"""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.methods.prompt import ROWS, virtual_tokens
from weft.adapters.operations import AttentionPrefix
from weft.adapters.plan import AdapterPlan

_TRAINING_ONLY = (
    "encoder_hidden_size",
    "init_weights",
    "num_frozen_tokens",
    "prefix_projection",
)


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """An `AttentionPrefix` of every attention layer of the base, in float32.

    Raises AdapterInvalid unless layers, heads and widths are the base's, naming the field.
    """
    fields = Fields(checkpoint.config)
    count = virtual_tokens(fields)
    heads, width = _layout(fields, base)
    fields.ignore(*_TRAINING_ONLY)
    fields.finish()
    draft = Draft(checkpoint, tensors, base)
    layers = len(base.attention)
    rows = draft.take(ROWS, count, 2 * layers * heads * width)
    by_layer = rows.view(count, layers, 2, heads, width)
    for index, name in enumerate(base.attention):
        keys, values = (part.contiguous() for part in by_layer[:, index].unbind(dim=1))
        draft.add(name, AttentionPrefix(keys, values))
    return draft.plan(str(checkpoint.config["peft_type"]).lower())


def _layout(fields: Fields, base: BaseModules) -> tuple[int, int]:
    """KV heads, and the width of each; peft knows only bases whose layers are all alike."""
    shapes = set(base.attention.values())
    if len(shapes) != 1:
        raise invalid("peft_type", "needs a base whose attention layers all keep the same shapes")
    (shape,) = shapes
    if shape.k_dim != shape.v_dim:
        raise invalid("peft_type", "needs a base whose keys are as wide as its values")
    needed = {
        "num_layers": len(base.attention),
        "num_attention_heads": shape.heads,
        "token_dim": shape.heads * shape.k_dim,
    }
    for field, value in needed.items():
        found = fields.get(field)
        if found is not None and found != value:
            reason = f"is {found!r}; the cache of this base needs {value}: made for another base?"
            raise invalid(field, reason)
    return shape.heads, shape.k_dim

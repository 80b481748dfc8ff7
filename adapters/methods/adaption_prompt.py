"""Adaption prompts (LLaMA-Adapter, arXiv:2303.16199): gated attention to trained rows.

Their keys and values are what the base's own projections make of the rows.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear

from weft.adapters.base import BaseModules, KVShape
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.operations import AttendedPrompt
from weft.adapters.plan import AdapterPlan
from weft.adapters.sublayers import Sublayer, sublayers_of

_BASES = ("GPT2Block", "LlamaDecoderLayer", "MistralDecoderLayer")


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """An `AttendedPrompt` of the last layers' attention, with the gate folded into its values.

    Raises AdapterInvalid on a base for which peft does not have the method.
    """
    fields = Fields(checkpoint.config)
    adapted = _adapted(fields, base)
    count = fields.integer("adapter_len", 1)
    fields.finish()
    draft = Draft(checkpoint, tensors, base)
    for sublayer in adapted:
        attention, _, output = sublayer.output.rpartition(".")
        shape = base.attention.get(attention)
        if shape is None:
            raise invalid("peft_type", "needs a base whose attention layers are known")
        if "bias" in base.owners[sublayer.output].shapes and output == "o_proj":
            raise invalid("peft_type", "adds the bias of the base's output projection twice")
        projection = base[sublayer.output]
        if projection.in_features != projection.out_features:
            raise invalid("peft_type", "needs a base whose heads are together as wide as it is")
        width = projection.out_features
        rows = draft.take(f"{attention}.adaption_prompt", 1, count, width)[0]
        gate = draft.take(f"{attention}.adaption_gate", 1)
        keys, values = _projected(base, attention, rows, shape)
        draft.add(sublayer.output, AttendedPrompt(keys.contiguous(), (values * gate).contiguous()))
    return draft.plan("adaption_prompt")


def _adapted(fields: Fields, base: BaseModules) -> list[Sublayer]:
    """The attention sublayers of the layers that the configuration selects, which are the last."""
    found = [each for each in sublayers_of(base.types) if each.part == "attention"]
    if not found or base.types[found[0].of] not in _BASES:
        raise invalid("peft_type", "is served on llama, mistral and gpt2 only, as peft trains it")
    target = found[0].output.removeprefix(f"{found[0].of}.").partition(".")[0]
    if fields.get("target_modules") not in (None, target):
        raise invalid("target_modules", f"must be {target!r}")
    count = fields.integer("adapter_layers", 1)
    if count > len(found):
        raise invalid("adapter_layers", f"is {count}; the base has {len(found)} layers")
    return found[-count:]


def _projected(
    base: BaseModules, attention: str, rows: Tensor, shape: KVShape
) -> tuple[Tensor, Tensor]:
    """Keys and values `[count, kv_heads, dim]` of the rows, before positions are put in."""
    joint = f"{attention}.c_attn"
    if joint in base:
        _, keys, values = _linear(base, joint, rows).chunk(3, dim=-1)
    else:
        keys, values = (_linear(base, f"{attention}.{part}_proj", rows) for part in ("k", "v"))
    return keys.view(-1, shape.heads, shape.k_dim), values.view(-1, shape.heads, shape.v_dim)


def _linear(base: BaseModules, name: str, rows: Tensor) -> Tensor:
    bias = None
    if "bias" in base.owners[name].shapes:
        bias = base.parameter(name, "bias").float().cpu()
    return linear(rows, base[name].weight().float().cpu(), bias)

"""Activated LoRA: a LoRA that begins where its invocation tokens stand for the last time."""

from dataclasses import replace

from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.operations import LowRank
from weft.adapters.plan import AdapterPlan

FIELD = "alora_invocation_tokens"


def read(fields: Fields) -> tuple[int, ...]:
    """The invocation tokens; empty for a LoRA that is active throughout."""
    value = fields.get(FIELD)
    if value is None:
        return ()
    tokens = value if isinstance(value, list) else []
    ids = tuple(token for token in tokens if type(token) is int and 0 <= token < 2**31)
    if not ids or len(ids) < len(tokens):
        raise invalid(FIELD, "must be a list of token ids, not an empty one")
    return ids


def activated(plan: AdapterPlan, invocation: tuple[int, ...]) -> AdapterPlan:
    """The plan of a LoRA, with these invocation tokens if there are any.

    Raises AdapterInvalid where it changes more than pairs of linear layers do: peft applies what
    was trained beside them, or to an embedding, throughout.
    """
    if not invocation:
        return plan
    for module, op in plan:
        if not isinstance(op, LowRank):
            reason = f"does not go with what else was trained on {module}; only with plain pairs"
            raise AdapterInvalid(f"adapter_config.json: {FIELD}", reason)
    return replace(plan, method="alora", invocation=invocation)

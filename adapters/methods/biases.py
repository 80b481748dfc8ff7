"""`bias`: the base's own biases, trained beside an adapter and saved in its file."""

from collections.abc import Collection
from typing import Literal

from torch import Tensor

from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, invalid

Trained = Literal["none", "all", "only"]
"""Which biases the file holds: those of the modules that the method targets, or all."""


def read(fields: Fields, method: str) -> Trained:
    """The field, in which the method's name stands for the modules that it targets."""
    names: dict[object, Trained] = {"none": "none", "all": "all", f"{method}_only": "only"}
    value = fields.get("bias")
    if value is None:
        return "none"
    if not isinstance(value, str) or value not in names:
        raise invalid("bias", f"{value!r} is not one of {', '.join(map(str, names))}")
    return names[value]


def take(draft: Draft, trained: Trained, targeted: Collection[str]) -> dict[str, Tensor]:
    """The new biases of the targeted modules, by module; those of all others are replaced here.

    Raises AdapterInvalid where the file lacks one.
    """
    changed: dict[str, Tensor] = {}
    for module, owner in draft.base.owners.items():
        shape = owner.shapes.get("bias")
        if shape is None or trained == "none":
            continue
        if module in targeted:
            changed[module] = draft.take(f"{module}.base_layer.bias", *shape)
        elif trained == "all":
            draft.replace(module, "bias", draft.named.take(f"{module}.bias", shape))
    return changed

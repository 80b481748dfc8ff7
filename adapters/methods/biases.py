"""`bias`: the base's own biases, trained beside an adapter and saved in its file."""

from collections.abc import Collection
from typing import Literal

from torch import Tensor

from weft.adapters.methods.draft import Draft, equal
from weft.adapters.methods.fields import Fields, invalid

_ORIGINAL = ".original_module."

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
    if trained == "none":
        return {}
    saved = _drop_originals(draft) if trained == "all" else frozenset()
    changed: dict[str, Tensor] = {}
    for module, owner in draft.base.owners.items():
        shape = owner.shapes.get("bias")
        if shape is None or module in saved:
            continue
        if module in targeted:
            changed[module] = draft.take(f"{module}.base_layer.bias", *shape)
        elif trained == "all":
            draft.replace(module, "bias", draft.named.take(f"{module}.bias", shape))
    return changed


def _drop_originals(draft: Draft) -> frozenset[str]:
    """The modules that are saved whole: the file holds the base's own biases of theirs too."""
    modules = set()
    for name in list(draft.named):
        module = name.replace(_ORIGINAL, ".").removesuffix(".bias")
        owner = draft.base.owners.get(module)
        if _ORIGINAL in name and owner is not None and "bias" in owner.shapes:
            own = draft.base.parameter(module, "bias").cpu()
            if not equal(draft.named.take(name, tuple(own.shape)), own):
                raise draft.named.refusal(name, "differs from the base's own bias")
            modules.add(module)
    return frozenset(modules)

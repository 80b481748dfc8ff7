"""`modules_to_save`: whole modules that were trained beside an adapter, saved in its file."""

import torch
from torch import Tensor

from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, invalid

FIELD = "modules_to_save"


def read(fields: Fields) -> tuple[str, ...]:
    """The field: ends of module names."""
    names = fields.names(FIELD) or ()
    if isinstance(names, str) or not all(names):
        raise invalid(FIELD, "must be a list of names")
    return names


def replace(draft: Draft, ends: tuple[str, ...], *, tied: bool = False) -> None:
    """Lets the modules whose names end so compute with the file's parameters.

    tied: whether the file may also hold the modules that share a weight with one of them
    Raises AdapterInvalid where no module is called so, or the file lacks a parameter.
    """
    base = draft.base
    for end in ends:
        if not any(name.endswith(end) for name in base.types):
            raise invalid(FIELD, f"the base has no module {end}")
    saved = [name for name in base.types if name.endswith(ends)]
    if tied and base.tied.intersection(saved):
        saved += [name for name in base.tied if f"{name}.weight" in draft.named]
    for module in dict.fromkeys(saved):
        replace_module(draft, module, "modules_to_save")


def replace_module(draft: Draft, module: str, part: str) -> None:
    """Replaces all parameters of a module and those inside of it.

    part: what may stand between the module's name and a parameter's in the file
    Raises AdapterInvalid where the file lacks one.
    """
    for owner, parameters in draft.base.owners.items():
        if owner != module and not owner.startswith(f"{module}."):
            continue
        for own, shape in parameters.shapes.items():
            plain = f"{owner}.{own}"
            wrapped = f"{module}.{part}{plain.removeprefix(module)}"
            names = [name for name in (plain, wrapped) if name in draft.named] or [plain]
            value, *more = (_take(draft, name, shape) for name in names)
            if more and not torch.equal(more[0], value):
                raise draft.named.refusal(wrapped, f"differs from {plain}")
            draft.replace(owner, own, value)


def _take(draft: Draft, name: str, shape: tuple[int, ...]) -> Tensor:
    found = draft.named.shape(name)
    if len(found) == len(shape) == 2 and found[0] != shape[0] and found[1] == shape[1]:
        rows = f"{found[0]} rows, where the base has {shape[0]}"
        raise draft.named.refusal(name, f"has shape {list(found)}: {rows}")
    return draft.named.take(name, shape)

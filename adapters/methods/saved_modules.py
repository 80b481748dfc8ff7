"""`modules_to_save`: whole modules that were trained beside an adapter, saved in its file."""

from collections.abc import Iterator

from weft.adapters.errors import AdapterInvalid
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
        for owner in _owners_in(module, draft):
            _take_all(draft, module, owner)


def _owners_in(module: str, draft: Draft) -> Iterator[str]:
    for owner in draft.base.owners:
        if owner == module or owner.startswith(f"{module}."):
            yield owner


def _take_all(draft: Draft, module: str, owner: str) -> None:
    for own, shape in draft.base.owners[owner].shapes.items():
        plain = f"{owner}.{own}"
        wrapped = f"{module}.modules_to_save{plain.removeprefix(module)}"
        name = wrapped if wrapped in draft.named else plain
        found = draft.named.shape(name)
        if len(found) > 1 and found[0] != shape[0] and found[1:] == shape[1:]:
            raise row_refusal(draft, name, found[0], shape[0])
        draft.replace(owner, own, draft.named.take(name, shape))


def row_refusal(draft: Draft, name: str, rows: int, base_rows: int) -> AdapterInvalid:
    """The refusal of an embedding or head of another vocabulary."""
    return draft.named.refusal(name, f"has {rows} rows, the base has {base_rows}")

"""Rows of the embedding, and of a head tied to it, that were trained by themselves."""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.methods.targets import TargetRule
from weft.adapters.operations import RowOverride
from weft.adapters.plan import AdapterPlan
from weft.adapters.strict_json import Json

FIELD = "trainable_token_indices"
_OWN_FIELD = "token_indices"
Ids = tuple[int, ...]
ByEnd = Mapping[str | None, Ids]
"""Token ids by the end of a module's name; None stands for the model's token embedding."""


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """The method of its own that trains nothing else."""
    fields = Fields(checkpoint.config)
    ids = read_ids(fields.get(_OWN_FIELD), _OWN_FIELD)
    if fields.get("target_modules") is None:
        modules = frozenset(_embedding(base))
    else:
        modules = TargetRule.read(fields).select(base)
    fields.ignore("init_weights")
    fields.finish()
    draft = Draft(checkpoint, tensors, base)
    listed = dict.fromkeys(sorted(modules), ids)
    replace(draft, listed, "{}.trainable_tokens_delta", "target_modules")
    return draft.plan("trainable_tokens")


def read(fields: Fields) -> ByEnd:
    """The field `trainable_token_indices`: ids, or ids by module; empty where it is not set."""
    value = fields.get(FIELD)
    if value is None:
        return {}
    if isinstance(value, dict):
        return {end: read_ids(ids, FIELD) for end, ids in value.items()}
    return {None: read_ids(value, FIELD)}


def read_ids(value: Json, field: str) -> Ids:
    """A list of different token ids; raises AdapterInvalid naming the field."""
    items = value if isinstance(value, list) else []
    ids = tuple(item for item in items if type(item) is int)
    if not ids or len(ids) < len(items):
        raise invalid(field, "must be a list of token ids")
    if len(set(ids)) < len(ids):
        raise invalid(field, "names a token twice")
    return ids


def replace_listed(draft: Draft, wanted: ByEnd) -> None:
    """Replaces the rows that `trainable_token_indices` lists; see `replace`."""
    base = draft.base
    listed: dict[str, Ids] = {}
    for end, ids in wanted.items():
        modules = [name for name in base if name.endswith(end)] if end else _embedding(base)
        if not modules:
            raise invalid(FIELD, f"the base has no embedding or head {end or ''}".rstrip())
        listed |= dict.fromkeys(modules, ids)
    replace(draft, listed, "{}.token_adapter.trainable_tokens_delta", FIELD)


def replace(draft: Draft, listed: Mapping[str, Ids], name: str, field: str) -> None:
    """Replaces rows of embeddings and heads by those in the file.

    A head that is tied to the model's embedding gets the embedding's rows, unless other ones are
    listed for it; the file may hold them a second time.
    listed: token ids by module   name: what the file calls a module's rows, with {} for the module
    Raises AdapterInvalid naming the field or tensor at fault.
    """
    base = draft.base
    followers = _followers(base, listed)
    for module, ids in listed.items():
        if base[module].refusal:
            raise invalid(field, f"selects {module}, but {base.explain(module)}")
        if module in followers:
            continue
        width = base[module].weight().shape[1]
        rows = draft.take(name.format(module), len(ids), width)
        _replace(draft, module, ids, rows, field)
        for follower in followers if module == base.embedding else ():
            copy = name.format(follower)
            if copy in draft.named and not torch.equal(draft.take(copy, *rows.shape), rows):
                raise draft.named.refusal(copy, f"differs from the rows of {module}, tied to it")
            _replace(draft, follower, ids, rows, field)


def _embedding(base: BaseModules) -> list[str]:
    return [] if base.embedding is None else [base.embedding]


def _followers(base: BaseModules, listed: Mapping[str, Ids]) -> list[str]:
    if base.embedding not in listed or base.embedding not in base.tied:
        return []
    ids = listed[base.embedding]
    return [name for name in base.tied if name != base.embedding and listed.get(name, ids) == ids]


def _replace(draft: Draft, module: str, ids: Ids, rows: Tensor, field: str) -> None:
    target = draft.base[module]
    own = target.weight().cpu()
    if not all(0 <= token < len(own) for token in ids):
        raise invalid(field, f"names a token that {module} does not have: it has {len(own)}")
    if "bias" in draft.base.owners[module].shapes:
        raise AdapterInvalid(module, "has a bias, which trained tokens would drop")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    places = torch.tensor([ids[index] for index in order])
    if not torch.equal(rows[order], own[places].float()):
        draft.add(module, RowOverride(places, rows[order] * target.scale))

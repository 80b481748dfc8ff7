"""What a person should know of a version that was lowered: its method, targets, size and doubts."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.delta import Deltas, LoadedWeights, Weights, missing_warnings
from weft.adapters.methods.base_copies import module_of
from weft.adapters.methods.names import normal_name
from weft.adapters.operations import (
    Bottleneck,
    Dense,
    LowRank,
    Operation,
    Override,
    RowOverride,
    Sparse,
)
from weft.adapters.plan import AdapterPlan
from weft.adapters.strict_json import Json

CHECKS = (
    "files: format, sizes, finite values",
    "configuration: every field known",
    "tensors: every one used, shapes of this base",
    "modules: every targeted one present",
    "effect: at least one update is not zero",
)

_FOUR_BIT = re.compile(r"[-_.](?:bnb[-_])?(?:4bit|nf4|fp4)$", re.IGNORECASE)


@dataclass(frozen=True)
class Card:
    """A version's description; everything in it comes from its files and the base.

    targets: last parts of the adapted modules' names   modules: how many there are
    tensors: in the files   trained: values in the files, copies of the base's weights not counted
    rank: the largest as computed, after lowering, or the width of bottlenecks; 0 without either
    alpha: as configured, None where the method has none
    share: trained values as a fraction of the base's   bytes: on the device
    delta_bytes: those of them that are dense or sparse deltas or whole parameters
    warnings: what is no reason to refuse, but may surprise
    exclusive: those of the targets to which it does more than add
    virtual_tokens: positions that stand before a prompt and count against the context
    tokens_only: it changes nothing but the embeddings of single tokens
    delta_norms: norms of the updates over those of the weights that they change, by layer; empty
        where it changes no weights, or they are not at hand
    """

    method: str
    targets: tuple[str, ...]
    modules: int
    tensors: int
    trained: int
    rank: int
    alpha: float | None
    share: float
    bytes: int
    delta_bytes: int
    checks: tuple[str, ...]
    warnings: tuple[str, ...]
    exclusive: tuple[str, ...]
    virtual_tokens: int
    tokens_only: bool
    delta_norms: Mapping[str, float]


def describe(
    checkpoint: Checkpoint,
    plan: AdapterPlan,
    base: BaseModules,
    *,
    dtype: torch.dtype,
    base_names: Sequence[str],
    weights: Weights | None = None,
) -> Card:
    """The card of a version that `lower` accepted.

    dtype: of the arena on the device   base_names: what the served base is called, its own name
    first   weights: the base's, if they are at hand
    """
    deltas = Deltas.of(plan, base, weights or LoadedWeights(base))
    trained = _trained(checkpoint, plan, base)
    alpha = checkpoint.config.get("lora_alpha")
    return Card(
        method=plan.method,
        targets=_last_parts(plan.ops),
        modules=len(plan.ops),
        tensors=_tensors(checkpoint),
        trained=trained,
        rank=_rank(plan),
        alpha=float(alpha) if isinstance(alpha, int | float) else None,
        share=trained / max(1, base.parameters),
        bytes=plan.nbytes(dtype),
        delta_bytes=_stored_bytes(plan, dtype, Dense, Sparse, Override),
        checks=CHECKS,
        warnings=(
            *_warnings(checkpoint.config, plan, base, base_names),
            *_delta_warnings(plan, dtype),
            *deltas.warnings(),
            *_missing(checkpoint.config, plan, base),
        ),
        exclusive=_last_parts(plan.exclusive),
        virtual_tokens=plan.traits.lead,
        tokens_only=set(plan.ops) == {base.embedding} and bool(plan.of_kind(RowOverride)),
        delta_norms=deltas.by_layer(),
    )


def _last_parts(modules: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name.rpartition(".")[2] for name in modules}))


def _tensors(checkpoint: Checkpoint) -> int:
    head = 0 if checkpoint.head is None else len(checkpoint.head.header.tensors)
    return len(checkpoint.header.tensors) + head


def _rank(plan: AdapterPlan) -> int:
    updates = [op.rank for op in plan.of_kind(LowRank).values()]
    networks = [len(op.down) for op in plan.of_kind(Bottleneck).values()]
    return max([*updates, *networks], default=0)


def _trained(checkpoint: Checkpoint, plan: AdapterPlan, base: BaseModules) -> int:
    """Values in the files; of a whole embedding or head, those that replace the base's."""
    specs = checkpoint.header.tensors.values()
    copies = [(spec, module_of(normal_name(spec.name), base)) for spec in specs]
    if checkpoint.head is not None:
        copies += [(spec, base.head) for spec in checkpoint.head.header.tensors.values()]
    whole, rows = plan.of_kind(Override), plan.of_kind(RowOverride)
    count = 0
    for spec, module in copies:
        if module is None or module in whole:
            count += math.prod(spec.shape)
        elif module in rows:
            count += rows[module].rows.numel()
    return count


def _warnings(
    config: Mapping[str, Json], plan: AdapterPlan, base: BaseModules, base_names: Sequence[str]
) -> list[str]:
    warnings: list[str] = []
    trained_on = config.get("base_model_name_or_path")
    if isinstance(trained_on, str) and trained_on:
        served_on = [_last(name) for name in base_names]
        warnings += _base_warnings(_last(trained_on), served_on, base.quantization)
    pairs = plan.of_kind(LowRank)
    excessive = [name for name, op in pairs.items() if op.rank > min(base.sides(name))]
    if excessive:
        warnings.append(
            f"rank {pairs[excessive[0]].rank} is larger than a side of {excessive[0]}: "
            "a lower rank would hold the same update"
        )
    if plan.traits.embeddings and base.embedding and base[base.embedding].scale != 1:
        warnings.append(
            "its virtual tokens are not scaled as this base scales its embeddings: right for "
            "adapters trained with transformers 5, not with versions that scaled them"
        )
    return warnings


def _base_warnings(
    trained_on: str, served_on: Sequence[str], quantization: str | None
) -> Iterator[str]:
    plain, four_bit = _FOUR_BIT.subn("", trained_on)
    if plain not in [_FOUR_BIT.sub("", name) for name in served_on]:
        yield (
            f"trained on {trained_on}, served on {served_on[0]}: another base by its name, though "
            "all modules and shapes fit"
        )
    if four_bit and quantization not in ("nf4", "fp4"):
        yield (
            f"trained on {trained_on}, a 4-bit base, but served on one that is "
            f"{quantization or 'not quantised'}: --quantization nf4 computes as it was trained"
        )


def _delta_warnings(plan: AdapterPlan, dtype: torch.dtype) -> Iterator[str]:
    """What takes memory and time like a layer of the base."""
    for kind, words in ((Dense, "dense delta"), (Sparse, "sparse delta")):
        ops = plan.of_kind(kind)
        if ops:
            size = _stored_bytes(plan, dtype, kind)
            yield f"{words}: a matrix for each of {len(ops)} modules, {size} bytes on the device"


def _stored_bytes(plan: AdapterPlan, dtype: torch.dtype, *kinds: type[Operation]) -> int:
    stored = [(op, t) for _, op in plan if isinstance(op, kinds) for t in op.tensors]
    return sum(t.numel() * op.stored_dtype(t, dtype).itemsize for op, t in stored)


def _missing(config: Mapping[str, Json], plan: AdapterPlan, base: BaseModules) -> Iterator[str]:
    """Modules without an update, unless the configuration asks for some layers only."""
    if config.get("layers_to_transform") is None:
        yield from missing_warnings(plan, base)


def _last(name: str) -> str:
    """The part of a hub id or folder that names the model; never a whole path."""
    return PurePosixPath(name.replace("\\", "/")).name

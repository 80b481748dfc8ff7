"""Random adapters of each kind that lowering makes, and what one costs in bytes and operations.

Built from the base's shapes as `weft.adapters.methods` lowers the files of the methods named.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.operations import (
    AttendedPrompt,
    AttentionPrefix,
    Bottleneck,
    Dense,
    InputRotation,
    InputScale,
    Kronecker,
    LowRank,
    Operation,
    OutputScale,
    OutputShift,
    Override,
    PairRotation,
    RowOverride,
    Sparse,
    VirtualTokens,
)
from weft.adapters.plan import AdapterPlan
from weft.adapters.sublayers import sublayers_of

VIRTUAL_TOKENS = 20
_ATTENTION = ("q_proj", "v_proj")

Ops = Mapping[str, tuple[Operation, ...]]


@dataclass(frozen=True)
class Family:
    """methods: of peft, that are served by the same operations   make: those of one adapter."""

    methods: str
    make: Callable[[BaseModules], Ops]

    def plan(self, name: str, base: BaseModules) -> AdapterPlan:
        """One adapter of the family for `base`; the same values at each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AdapterPlan(name, name, self.make(base))


def flops_per_row(op: Operation, chosen: float = 1.0) -> float:
    """Multiplications and additions that one decoded row needs.

    chosen: the share of a layer's experts that compute a row
    """
    match op:
        case LowRank() if op.a.dim() == 3:
            return 2 * chosen * (op.a.numel() + op.b.numel())
        case VirtualTokens() | AttentionPrefix() | Override() | RowOverride():
            return 0  # computed before, or in place of what the base does
        case Kronecker():
            (a, c), (b, d) = op.outer.shape, op.inner.shape
            return 2 * c * b * (d + a)
        case Sparse():
            return 2 * op.values.numel()
        case PairRotation():
            return 4 * op.direct.numel()
        case OutputScale() | InputScale() | OutputShift():
            return sum(tensor.numel() for tensor in op.tensors)
        case _:
            return 2 * sum(tensor.numel() for tensor in op.tensors)


def bytes_per_step(op: Operation, itemsize: int, rows: int = 1, chosen: float = 1.0) -> float:
    """What one step must read of an adapter that `rows` of its rows use, at `itemsize` a value.

    chosen: the share of a layer's experts that compute a row
    """
    match op:
        case LowRank() if op.a.dim() == 3:
            met = 1 - (1 - chosen) ** rows
            return met * itemsize * (op.a.numel() + op.b.numel())
        case VirtualTokens() | AttentionPrefix():
            return 0
        case RowOverride():
            return op.ids.nbytes + op.rows.shape[1] * itemsize
        case _:
            return sum(
                tensor.numel() * (itemsize if tensor.is_floating_point() else tensor.itemsize)
                for tensor in op.tensors
            )


def _linears(base: BaseModules, *ends: str) -> Iterator[tuple[str, int, int]]:
    """Name, in_features and out_features of the linear layers but the head, or of some of them."""
    for name, module in base.items():
        if module.kind != "embedding" and name != base.head and (not ends or name.endswith(ends)):
            yield name, module.in_features, module.out_features


def low_rank(rank: int, *ends: str) -> Callable[[BaseModules], Ops]:
    """Pairs of one rank on the linear layers whose names end so; without `ends` on all of them."""
    return lambda base: {
        name: (_pair(rank, inputs, outputs),) for name, inputs, outputs in _linears(base, *ends)
    }


def _pair(rank: int, inputs: int, outputs: int) -> LowRank:
    return LowRank(torch.randn(rank, inputs) / inputs**0.5, _small(rank, outputs))


def _experts(base: BaseModules) -> Ops:
    """Pairs of rank 16 on every map of every expert, where the base has experts."""
    return {
        name: (
            LowRank(
                torch.randn(experts.experts, 16, inputs) / inputs**0.5,
                _small(experts.experts, 16, outputs),
            ),
        )
        for name, experts in base.experts.items()
        for inputs, outputs in [base.sides(name)]
    }


def _dora(base: BaseModules) -> Ops:
    """With the shift by which a base's bias escapes the scale."""
    return {
        name: (
            OutputScale(_near_one(outputs)),
            *([OutputShift(_small(outputs))] if "bias" in base.owners[name].shapes else []),
            _pair(16, inputs, outputs),
        )
        for name, inputs, outputs in _linears(base)
    }


def _ia3(base: BaseModules) -> Ops:
    scales: dict[str, tuple[Operation, ...]] = {
        name: (OutputScale(_near_one(outputs)),)
        for name, _, outputs in _linears(base, "k_proj", "v_proj")
    }
    for name, inputs, _ in _linears(base, "down_proj"):
        scales[name] = (InputScale(_near_one(inputs)),)
    return scales


def _biases(base: BaseModules) -> Ops:
    return {name: (OutputShift(_small(outputs)),) for name, _, outputs in _linears(base)}


def _norms(base: BaseModules) -> Ops:
    overrides: dict[str, tuple[Operation, ...]] = {}
    for name, owner in base.owners.items():
        if owner.type_name.endswith("Norm"):
            own = base.parameter(name, "weight")
            weight = (own * _near_one(*own.shape)).to(own.dtype)
            overrides[name] = (Override({"weight": weight}),)
    return overrides


def _road(base: BaseModules) -> Ops:
    return {
        name: (PairRotation(_near_one(outputs // 64, 64), _small(outputs // 64, 64)),)
        for name, _, outputs in _linears(base)
    }


def _oft(base: BaseModules) -> Ops:
    return {
        name: (InputRotation(torch.eye(32) + _small(inputs // 32, 32, 32)),)
        for name, inputs, _ in _linears(base)
    }


def _lokr(base: BaseModules) -> Ops:
    return {
        name: (Kronecker(_small(16, 16), _small(outputs // 16, inputs // 16)),)
        for name, inputs, outputs in _linears(base)
    }


def _shira(base: BaseModules) -> Ops:
    """As many values as a LoRA of rank 16, spread over the rows."""
    return {
        name: (_sparse(-(-16 * (inputs + outputs) // outputs), inputs, outputs),)
        for name, inputs, outputs in _linears(base)
    }


def _sparse(per_row: int, inputs: int, outputs: int) -> Sparse:
    stride = inputs // per_row
    columns = torch.arange(per_row) * stride + torch.randint(stride, (outputs, per_row))
    starts = torch.arange(outputs + 1, dtype=torch.int32) * per_row
    return Sparse(starts, columns.flatten().int(), _small(outputs * per_row))


def _dense(*ends: str) -> Callable[[BaseModules], Ops]:
    return lambda base: {
        name: (Dense(_small(outputs, inputs)),) for name, inputs, outputs in _linears(base, *ends)
    }


def _bottleneck(*parts: str) -> Callable[[BaseModules], Ops]:
    def make(base: BaseModules) -> Ops:
        return {
            sublayer.output: (_network(64, base[sublayer.output].out_features),)
            for sublayer in sublayers_of(base.types)
            if sublayer.part in parts
        }

    return make


def _network(size: int, width: int) -> Bottleneck:
    tensors = (_small(size, width), _small(size), _small(width, size), _small(width))
    return Bottleneck(*tensors, activation="relu", tap="output")


def _adaption_prompt(base: BaseModules) -> Ops:
    shapes = list(base.attention.values())
    outputs = [each.output for each in sublayers_of(base.types) if each.part == "attention"]
    return {
        name: (AttendedPrompt(*(torch.randn(10, shape.heads, shape.k_dim) for _ in range(2))),)
        for name, shape in zip(outputs, shapes, strict=True)
    }


def _tokens(base: BaseModules) -> Ops:
    assert base.embedding is not None
    module = base[base.embedding]
    ids = torch.arange(0, module.in_features, module.in_features // 100)
    return {module.name: (RowOverride(ids, _small(len(ids), module.out_features)),)}


def _soft_prompt(base: BaseModules) -> Ops:
    assert base.embedding is not None
    width = base[base.embedding].out_features
    return {base.embedding: (VirtualTokens(_small(VIRTUAL_TOKENS, width)),)}


def _prefix(base: BaseModules) -> Ops:
    return {
        name: (
            AttentionPrefix(
                torch.randn(VIRTUAL_TOKENS, shape.heads, shape.k_dim),
                torch.randn(VIRTUAL_TOKENS, shape.heads, shape.v_dim),
            ),
        )
        for name, shape in base.attention.items()
    }


def _small(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.02


def _near_one(*shape: int) -> Tensor:
    return 1 + _small(*shape)


FAMILIES: dict[str, Family] = {
    "low rank 16": Family("LORA and what lowers to it, all linear layers", low_rank(16)),
    "experts 16": Family("LORA with target_parameters, every map of every expert", _experts),
    "low rank 256": Family("VERA at its default rank, q and v", low_rank(256, *_ATTENTION)),
    "dora 16": Family("LORA with use_dora, all linear layers", _dora),
    "ia3": Family("IA3, k, v and down", _ia3),
    "biases": Family("BEFT and bias, all linear layers", _biases),
    "norms": Family("LN_TUNING", _norms),
    "road": Family("ROAD, all linear layers", _road),
    "oft": Family("OFT in blocks of 32, all linear layers", _oft),
    "kronecker": Family("LOKR, 16 x 16 and the rest, all linear layers", _lokr),
    "sparse": Family("SHIRA of LORA 16's size, all linear layers", _shira),
    "dense": Family("FOURIERFT, RANDLORA, HIRA, ... on q and v", _dense(*_ATTENTION)),
    "dense, all": Family("the same on all linear layers", _dense()),
    "bottleneck": Family("AdapterHub's Pfeiffer, size 64", _bottleneck("feed_forward")),
    "bottlenecks": Family("Houlsby, size 64", _bottleneck("attention", "feed_forward")),
    "adaption prompt": Family("ADAPTION_PROMPT, 10 rows in each layer", _adaption_prompt),
    "tokens": Family("TRAINABLE_TOKENS, 100 of them", _tokens),
    "soft prompt": Family("PROMPT_TUNING, P_TUNING, CPT", _soft_prompt),
    "prefix": Family("PREFIX_TUNING, CARTRIDGE", _prefix),
}

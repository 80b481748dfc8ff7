"""The fields of a LoRA configuration that change what is computed, and why others are refused."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from weft.adapters.methods import (
    alora,
    biases,
    block_diagonal,
    kasa,
    saved_modules,
    trained_tokens,
)
from weft.adapters.methods.block_diagonal import BlockDiagonal
from weft.adapters.methods.fields import Fields, finite_number, invalid, positive_integer
from weft.adapters.methods.patterns import first_match
from weft.adapters.methods.targets import TargetRule
from weft.adapters.strict_json import Json

Init = Literal["plain", "pissa", "olora"]

_CONVERT = (
    "convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...) writes an "
    "adapter that needs no changed base"
)
_TRAINING_ONLY = (
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "monteclora_config",
    "qalora_group_size",
    "velora_config",
)
_REFUSED = {
    "arrow_config": "Arrow routes over other adapters, which one version does not hold",
    "layer_replication": "computes layers of the base several times, each with a KV cache of its "
    "own: that is another base",
    "megatron_config": "Megatron's parallel layers are not served",
    "use_qalora": "QA-LoRA is not served",
}
_INITS: Mapping[str, Init] = {
    "gaussian": "plain",
    "orthogonal": "plain",
    "eva": "plain",
    "mica": "plain",
    "pissa": "pissa",
    "olora": "olora",
}
_REFUSED_INITS = {
    "corda": "CorDA trains beside a changed base; " + _CONVERT,
    "lora_ga": "LoRA-GA trains beside a changed base; " + _CONVERT,
    "loftq": "LoftQ trains beside a requantised base",
}


class Strength(NamedTuple):
    """Of one module: the rank of its pair, and what its product is multiplied by."""

    rank: int
    scaling: float


@dataclass(frozen=True)
class LoraConfig:
    """What a LoRA computes: `y += scaling(module) · B A x` for each selected module.

    targets: None where no modules are targeted   parameters: bare ones, ends of their names
    rank_pattern, alpha_pattern: exceptions of rank and alpha by a pattern of module names; the
        first that matches holds
    init: "plain", or how the base's weights were changed before training
    tied: whether an adapter of the embedding may come with one of the head that is tied to it
    dora: whether the norms of rows were trained apart   lora_bias: whether B comes with a bias
    bias, saved, tokens: what was trained beside; see the modules that read them
    invocation: token ids from whose last occurrence on it is active; empty: throughout
    kasa, blocks: see the modules that read them
    """

    rank: int
    alpha: float
    rslora: bool
    targets: TargetRule | None
    parameters: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    init: Init
    tied: bool
    dora: bool
    lora_bias: bool
    bias: biases.Trained
    saved: tuple[str, ...]
    tokens: trained_tokens.ByEnd
    invocation: tuple[int, ...]
    kasa: bool
    blocks: BlockDiagonal | None

    @classmethod
    def read(cls, config: Mapping[str, Json]) -> "LoraConfig":
        """Raises AdapterInvalid naming the field that is wrong, unknown or not served."""
        fields = Fields(config)
        fields.refuse(_REFUSED)
        fields.ignore(*_TRAINING_ONLY)
        fields.flag("fan_in_fan_out")  # how the base stores a weight; LoRA's layout is the same
        init = _init(fields)
        parameters = _parameters(fields)
        result = cls(
            rank=fields.integer("r", 8),
            alpha=fields.number("lora_alpha", 8),
            rslora=fields.flag("use_rslora"),
            targets=_targets(fields, needed=not parameters),
            parameters=parameters,
            rank_pattern=fields.table("rank_pattern", positive_integer),
            alpha_pattern=fields.table("alpha_pattern", finite_number),
            init=init,
            tied=fields.flag("ensure_weight_tying"),
            dora=fields.flag("use_dora"),
            lora_bias=fields.flag("lora_bias"),
            bias=biases.read(fields, "lora"),
            saved=saved_modules.read(fields),
            tokens=trained_tokens.read(fields),
            invocation=alora.read(fields),
            kasa=kasa.read(fields),
            blocks=BlockDiagonal.read(fields),
        )
        fields.finish()
        result._check_combination()
        return result

    def _check_combination(self) -> None:
        """At most one way in which a pair, or the base's weight, is another than LoRA's."""
        ways = {
            "use_dora": self.dora,
            "init_lora_weights": self.init != "plain",
            kasa.FIELD: self.kasa,
            block_diagonal.FIELD: self.blocks is not None,
        }
        used = [field for field, is_used in ways.items() if is_used]
        if len(used) > 1 and used != ["use_dora", "init_lora_weights"]:
            raise invalid(used[-1], f"cannot be combined with {used[0]}")
        if self.parameters:
            self.check_bare()

    def check_bare(self) -> None:
        """Raises AdapterInvalid for what cannot be trained on experts and other bare parameters."""
        fields = {
            "use_dora": self.dora,
            "lora_bias": self.lora_bias,
            "init_lora_weights": self.init != "plain",
            kasa.FIELD: self.kasa,
            block_diagonal.FIELD: self.blocks is not None,
            alora.FIELD: bool(self.invocation),
        }
        for field, is_used in fields.items():
            if is_used:
                raise invalid(field, "cannot be combined with LoRA on experts or bare parameters")

    @property
    def plain_strength(self) -> Strength:
        """That of modules for which no pattern makes an exception."""
        return self._strength(self.rank, self.alpha)

    def strengths(self, modules: Iterable[str]) -> dict[str, Strength]:
        """Rank and scaling of each module, by name."""
        rank_of = first_match(self.rank_pattern, self.rank, "rank_pattern")
        alpha_of = first_match(self.alpha_pattern, self.alpha, "alpha_pattern")
        result = {}
        for name in modules:
            result[name] = self._strength(rank_of(name), alpha_of(name))
        return result

    def _strength(self, rank: int, alpha: float) -> Strength:
        return Strength(rank, alpha / (math.sqrt(rank) if self.rslora else rank))


def _targets(fields: Fields, *, needed: bool) -> TargetRule | None:
    """The rule; peft's other fields about modules are about those of `target_modules` only."""
    if needed or fields.names("target_modules"):
        return TargetRule.read(fields)
    fields.ignore("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    return None


def _parameters(fields: Fields) -> tuple[str, ...]:
    names = fields.names("target_parameters") or ()
    if isinstance(names, str) or not all(names):
        raise invalid("target_parameters", "must be a list of names")
    return names


def _init(fields: Fields) -> Init:
    value = fields.get("init_lora_weights")
    if value is None or isinstance(value, bool):
        return "plain"
    name = value.lower() if isinstance(value, str) else ""
    if name in _INITS:
        return _INITS[name]
    if name.startswith("pissa_niter"):
        reason = "a randomised decomposition cannot be repeated; " + _CONVERT
    else:
        reason = _REFUSED_INITS.get(name, "is a way to train that this server does not know")
    raise invalid("init_lora_weights", f"{value!r}: {reason}")

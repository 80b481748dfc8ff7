"""LoRA: low-rank pairs on linear layers and embeddings. Knows the file's layout and its traps."""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME
from weft.adapters.methods import (
    alora,
    base_copies,
    biases,
    dora,
    former_experts,
    kasa,
    saved_modules,
    target_parameters,
    trained_tokens,
)
from weft.adapters.methods.changed_base import base_change
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.former_experts import Former
from weft.adapters.methods.lora_config import LoraConfig, Strength
from weft.adapters.methods.names import NamedTensors
from weft.adapters.methods.target_parameters import ParameterTarget
from weft.adapters.operations import LowRank, OutputScale, OutputShift
from weft.adapters.plan import AdapterPlan

_FOREIGN = (
    (r"\.lora_magnitude_vector", "is a DoRA magnitude, but use_dora is not set"),
    (r"\.lora_B\.bias$", "is a bias of the adapter, but lora_bias is not set"),
    (r"\.lora_diag", "belongs to KaSA, but kasa_config is not set"),
    (r"\.modules_to_save\.", "is a whole module, but modules_to_save is not set"),
    (r"\.token_adapter\.", "holds trained tokens, but trainable_token_indices is not set"),
    (r"\.base_layer\.lora_", "is LoRA on a bare parameter that target_parameters does not name"),
)
_EXPERT = re.compile(r"\.experts\.\d+\.")


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """Low rank for all that the configuration selects, and what was trained beside it.

    Raises AdapterInvalid unless configuration, file and base agree on every module and tensor.
    """
    config = LoraConfig.read(checkpoint.config)
    draft = Draft(checkpoint, tensors, base)
    former = former_experts.in_file(draft.named, base)
    modules, layers = _selected(config, draft.named, base, former)
    parameters = _selected_parameters(config, base, modules)
    saved_modules.replace(draft, config.saved, tied=config.tied)
    trained_tokens.replace_listed(draft, config.tokens)
    targeted = {*modules, *(target.module for target in parameters)}
    new_biases = biases.take(draft, config.bias, targeted)
    _refuse_foreign(draft.named, _expected(config, base, modules, layers, parameters), base)
    former_experts.add(draft, former, layers, config)
    _add_parameters(draft, config, parameters, new_biases)
    changes: dict[str, LowRank] = {}
    for name, strength in config.strengths(modules).items():
        pair = _pair(draft, config, base[name], strength)
        if config.kasa:
            change: LowRank | None = kasa.base_change(base, name, strength.rank)
        else:
            change = base_change(config.init, base, name, strength)
        if change is not None:
            changes[name] = change
            pair = _joined(pair, change)
        added = _added_bias(draft, name, strength) if config.lora_bias else None
        _add(draft, config, name, pair, new_biases.get(name), added)
    base_copies.take(draft, changes)
    return alora.activated(draft.plan("dora" if config.dora else "lora"), config.invocation)


def part_names(module: TargetModule) -> tuple[str, str]:
    """What the file calls the module's A and B."""
    if module.kind == "embedding":
        return f"{module.name}.lora_embedding_A", f"{module.name}.lora_embedding_B"
    return f"{module.name}.lora_A.weight", f"{module.name}.lora_B.weight"


def _selected(
    config: LoraConfig, named: NamedTensors, base: BaseModules, former: Former
) -> tuple[list[str], list[str]]:
    """The modules to adapt, and the layers that they were before transformers 5, in order.

    With weight tying, an adapter of the embedding may bring one of the head, or not: the file says.
    """
    if config.targets is None:
        return [], []
    if former:
        config.check_bare()
        selected = config.targets.matching([*base, *former])
    else:
        selected = config.targets.select(base)
    if config.tied and selected & base.tied:
        selected |= {name for name in base.tied if part_names(base[name])[0] in named}
    for name in selected:
        if name in base and base[name].refusal:
            raise invalid("target_modules", f"selects {name}, but {base.explain(name)}")
    return [n for n in base if n in selected], [n for n in former if n in selected]


def _selected_parameters(
    config: LoraConfig, base: BaseModules, modules: list[str]
) -> list[ParameterTarget]:
    targets = target_parameters.select(config.parameters, base)
    saved = tuple(name for name in base.types if config.saved and name.endswith(config.saved))
    for target in targets:
        if target.module in modules:
            field, reason = "target_modules", "selects its module too"
        elif any(f"{target.name}.".startswith(f"{name}.") for name in saved):
            field, reason = saved_modules.FIELD, "saves it whole"
        else:
            continue
        raise invalid(target_parameters.FIELD, f"selects {target.name}, but {field} {reason}")
    return targets


def _expected(
    config: LoraConfig,
    base: BaseModules,
    modules: list[str],
    layers: list[str],
    parameters: list[ParameterTarget],
) -> dict[str, str]:
    """What each tensor that the file must hold is a part of, by the tensor's name."""
    parts = {part: name for name in modules for part in _all_part_names(base[name], config)}
    parts |= {part: name for name in layers for part in former_experts.part_names(name)}
    return parts | {part: target.name for target in parameters for part in target.parts}


def _refuse_foreign(named: NamedTensors, expected: Mapping[str, str], base: BaseModules) -> None:
    """Names in the file and those expected must be the same; says what is not.

    A foreign name is told first: it explains best why a module seems to be missing.
    """
    for name in named:
        if name not in expected and base_copies.module_of(name, base) is None:
            raise named.refusal(name, _why_foreign(name, expected.values(), base))
    for part, name in expected.items():
        if part not in named:
            raise AdapterInvalid(
                WEIGHTS_NAME, f"holds no {part}, but the configuration selects {name}"
            )


def _all_part_names(module: TargetModule, config: LoraConfig) -> list[str]:
    names = [*part_names(module)]
    if config.dora:
        names.append(dora.magnitude_name(module.name))
    if config.lora_bias:
        names.append(_bias_name(module.name))
    if config.kasa:
        names.append(kasa.values_name(module.name))
    return names


def _why_foreign(name: str, selected: Collection[str], base: BaseModules) -> str:
    for pattern, reason in _FOREIGN:
        if re.search(pattern, name):
            return reason
    module, lora, _ = name.rpartition(".lora_")
    if not lora:
        return "is of the base itself: whole tensors and biases must be named in the configuration"
    if module not in base and _EXPERT.search(name):
        return (
            "adapts one expert of a mixture, which this base does not have or the configuration "
            "does not select"
        )
    if module not in base:
        return base.explain(module)
    if module not in selected:
        return f"is of module {module}, which the configuration does not select"
    return f"is not a tensor of LoRA on {module}, a module of kind {base[module].kind}"


def _pair(draft: Draft, config: LoraConfig, module: TargetModule, strength: Strength) -> LowRank:
    part_a, part_b = part_names(module)
    rank = strength.rank
    if config.blocks is not None:
        a, b = config.blocks.take(draft, module, (part_a, part_b), rank)
    else:
        a = draft.take(part_a, rank, module.in_features)
        b = draft.take(part_b, module.out_features, rank)
    if config.kasa:
        a = a * draft.take(kasa.values_name(module.name), rank)[:, None]
    return LowRank(a, b.T.contiguous() * (strength.scaling * module.scale))


def _add_parameters(
    draft: Draft,
    config: LoraConfig,
    targets: list[ParameterTarget],
    new_biases: dict[str, Tensor],
) -> None:
    """Takes the new biases of their modules too."""
    strengths = config.strengths(target.name for target in targets)
    for target in targets:
        target_parameters.add(draft, target, strengths[target.name])
        if target.module in new_biases:
            draft.replace(target.module, "bias", new_biases.pop(target.module))


def _bias_name(module: str) -> str:
    return f"{module}.lora_B.bias"


def _added_bias(draft: Draft, module: str, strength: Strength) -> Tensor:
    """What `lora_bias` adds, `[out_features]`."""
    width = draft.base[module].out_features
    return draft.take(_bias_name(module), width) * strength.scaling


def _add(
    draft: Draft,
    config: LoraConfig,
    name: str,
    pair: LowRank,
    bias: Tensor | None,
    added: Tensor | None,
) -> None:
    """`y = c (W x + B A x) + bias + added`, of a y that the base computes as `W x` and its bias.

    bias: in place of the base's, or None for the base's own   added: None for nothing
    """
    needed = (config.dora or bias is not None) and "bias" in draft.base.owners[name].shapes
    own = draft.base.parameter(name, "bias").cpu().float() if needed else None
    shift = torch.zeros(draft.base[name].out_features)
    if own is not None:
        shift += (bias if bias is not None else own) - own
    if added is not None:
        shift += added
    if config.dora:
        factors = dora.take_factors(draft, draft.base[name], pair)
        draft.add(name, OutputScale(factors))
        pair = LowRank(pair.a, pair.b * factors)
        if own is not None:
            shift += own - own * factors
    if shift.any():
        draft.add(name, OutputShift(shift))
    draft.add(name, pair)


def _joined(first: LowRank, second: LowRank) -> LowRank:
    return LowRank(torch.cat([first.a, second.a]), torch.cat([first.b, second.b]))

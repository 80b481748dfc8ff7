"""LoRA on experts and routers that were linear layers when it was trained, before transformers 5.

Served as peft converts it; where peft would compute something else than was trained, refused.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.expert_maps import ExpertMap
from weft.adapters.methods import target_parameters
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.lora_config import LoraConfig, Strength
from weft.adapters.methods.names import NamedTensors
from weft.adapters.methods.target_parameters import ParameterTarget
from weft.adapters.operations import LowRank

Former = Mapping[str, ExpertMap | ParameterTarget]
"""What holds the weights of former layers today, by the layers' names."""


def in_file(named: NamedTensors, base: BaseModules) -> Former:
    """All former layers of the base, if the file has tensors of one; else none."""
    former: dict[str, ExpertMap | ParameterTarget] = {
        layer: experts
        for experts in base.experts.values()
        for number in range(experts.experts)
        for layer in experts.former_of(number)
    }
    for layer, module in base.former.items():
        owner = base.owners.get(module)
        if module not in base and owner is not None and len(owner.shapes.get("weight", ())) == 2:
            former[layer] = ParameterTarget(module, "weight", layer)
    found = any(name.partition(".lora_")[0] in former for name in named if ".lora_" in name)
    return former if found else {}


def part_names(layer: str) -> tuple[str, str]:
    """What the file calls A and B of a former layer."""
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"


def add(draft: Draft, former: Former, selected: Collection[str], config: LoraConfig) -> None:
    """Takes the pairs of the former layers that are selected and adds what they do today.

    Raises AdapterInvalid where that is not what they did.
    """
    layers: dict[ExpertMap, set[str]] = defaultdict(set)
    for layer in selected:
        today = former[layer]
        if isinstance(today, ParameterTarget):
            strength = _strength(config, [layer], today.name)
            target_parameters.add(draft, today, strength)
        else:
            layers[today].add(layer)
    for experts, own in layers.items():
        _check_whole(experts, own)
        if experts.refusal is not None:
            raise invalid("target_modules", f"selects {min(own)}, but {experts.refusal}")
        if config.rslora and len(experts.former) > 1:
            raise invalid("use_rslora", _otherwise(experts.name))
        strength = _strength(config, own, experts.name if len(experts.former) == 1 else None)
        draft.add(experts.name, _joined(draft, experts, strength))
    _check_modules(draft.base, layers)


def _check_whole(experts: ExpertMap, layers: set[str]) -> None:
    """All of a map's former layers must be there: together they are one parameter today."""
    for number in range(experts.experts):
        for layer in experts.former_of(number):
            if layer not in layers:
                reason = f"selects {min(layers)} and not {layer}, which are one parameter today"
                raise invalid("target_modules", reason)


def _check_modules(base: BaseModules, maps: Iterable[ExpertMap]) -> None:
    """Without the last map of a layer of experts, peft does not find the first one's tensors."""
    last = {experts.module: experts.name for experts in base.experts.values()}
    selected = {experts.name for experts in maps}
    for experts in maps:
        if last[experts.module] not in selected:
            reason = f"selects experts' layers but not all: {_otherwise(experts.name)}"
            raise invalid("target_modules", reason)


def _strength(config: LoraConfig, layers: Iterable[str], today: str | None) -> Strength:
    """The same for all layers, and what peft gives today's parameter; None: one made of several."""
    plain = config.plain_strength
    given = plain if today is None else config.strengths([today])[today]
    for layer, strength in config.strengths(layers).items():
        if strength != given:
            field = "rank_pattern" if strength.rank != given.rank else "alpha_pattern"
            raise invalid(field, f"has an exception for {layer}: {_otherwise(today or 'a map')}")
    return given


def _otherwise(name: str) -> str:
    return f"peft computes {name} otherwise with transformers 5 than it was trained"


def _joined(draft: Draft, experts: ExpertMap, strength: Strength) -> LowRank:
    """The pairs of all layers, of which each changes its own part of the outputs."""
    width = experts.out_features // len(experts.former)
    rank = strength.rank
    a: list[Tensor] = []
    b: list[Tensor] = []
    for number in range(experts.experts):
        names = [part_names(layer) for layer in experts.former_of(number)]
        a.append(torch.cat([draft.take(one, rank, experts.in_features) for one, _ in names]))
        parts = [draft.take(two, width, rank).T for _, two in names]
        b.append(torch.block_diag(*parts))  # type: ignore[no-untyped-call]
    return LowRank(torch.stack(a), torch.stack(b) * strength.scaling)

"""`target_parameters`: LoRA on bare parameters, among them the maps of layers of experts.

Knows how peft nests several of one module in its file, and how it stacks experts in one tensor.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.expert_maps import ExpertMap
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.lora_config import Strength
from weft.adapters.operations import LowRank

FIELD = "target_parameters"


@dataclass(frozen=True)
class ParameterTarget:
    """A parameter with a low-rank pair.

    module, parameter: the names of its module, and its own in it
    stem: what the names of the pair's tensors begin with
    """

    module: str
    parameter: str
    stem: str

    @property
    def name(self) -> str:
        """Its full name, which rank and alpha patterns are matched with."""
        return f"{self.module}.{self.parameter}"

    @property
    def parts(self) -> tuple[str, str]:
        """What the file calls A and B."""
        return f"{self.stem}.lora_A.weight", f"{self.stem}.lora_B.weight"


def select(names: Iterable[str], base: BaseModules) -> list[ParameterTarget]:
    """The base's parameters of these full names or last parts of them, in the base's order.

    Raises AdapterInvalid where there is none of a name, or one that cannot be adapted.
    """
    wanted = dict.fromkeys(names, False)
    targets: list[ParameterTarget] = []
    for module, owner in base.owners.items():
        selected = []
        for parameter in owner.shapes:
            full = f"{module}.{parameter}"
            hits = [name for name in wanted if full == name or full.endswith(f".{name}")]
            wanted.update(dict.fromkeys(hits, True))
            if hits:
                _check(module, parameter, base)
                selected.append(parameter)
        # Each wraps the module as the one before left it: the last one is the outermost.
        targets += [
            ParameterTarget(module, parameter, module + ".base_layer" * depth)
            for depth, parameter in enumerate(reversed(selected))
        ]
    for name, found in wanted.items():
        if not found:
            raise invalid(FIELD, f"the base has no parameter {name}")
    return targets


def add(draft: Draft, target: ParameterTarget, strength: Strength) -> None:
    """Takes the target's pair and adds what it does.

    Raises AdapterInvalid where the file lacks a tensor or has one of another shape.
    """
    base = draft.base
    if target.name in base.experts:
        draft.add(target.name, _expert_pairs(draft, target, base.experts[target.name], strength))
        return
    rows, columns = base.owners[target.module].shapes[target.parameter]
    part_a, part_b = target.parts
    a = draft.take(part_a, strength.rank, columns)
    b = draft.take(part_b, rows, strength.rank) * strength.scaling
    if target.parameter == "weight" and target.module in base:
        draft.add(target.module, _of_linear(base, target.module, a, b))
    else:
        own = base.parameter(target.module, target.parameter).cpu().float()
        draft.replace(target.module, target.parameter, own + b @ a)


def _check(module: str, parameter: str, base: BaseModules) -> None:
    owner = base.owners[module]
    shape, name = owner.shapes[parameter], f"{module}.{parameter}"
    if owner.refusal is not None:
        raise invalid(FIELD, f"selects {name}, but {owner.refusal}")
    if len(shape) == 3 and name not in base.experts:
        raise invalid(
            FIELD, f"selects {name}, but a {owner.type_name} does not tell how it computes with it"
        )
    if len(shape) not in (2, 3):
        raise invalid(FIELD, f"selects {name}, which has {len(shape)} dimensions and not 2 or 3")


def _expert_pairs(
    draft: Draft, target: ParameterTarget, experts: ExpertMap, strength: Strength
) -> LowRank:
    """In A an expert's ranks lie together, in B those of one number of all experts."""
    count, rank = experts.experts, strength.rank
    part_a, part_b = target.parts
    a = draft.take(part_a, count * rank, experts.in_features)
    b = draft.take(part_b, experts.out_features, rank * count)
    return LowRank(
        a.view(count, rank, -1),
        b.view(-1, rank, count).permute(2, 1, 0).contiguous() * strength.scaling,
    )


def _of_linear(base: BaseModules, name: str, a: Tensor, b: Tensor) -> LowRank:
    """Of `b a`, which is added to the weight as the module stores it: rows of a are its columns."""
    module = base[name]
    if module.kind == "linear":
        return LowRank(a, b.T.contiguous())
    return LowRank(b.T.contiguous(), a * module.scale)

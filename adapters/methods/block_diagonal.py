"""BD-LoRA: A or B of some modules holds only the blocks on its diagonal."""

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.adapters.base import TargetModule
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, invalid

FIELD = "use_bdlora"
_KNOWN = {"target_modules_bd_a", "target_modules_bd_b", "nblocks", "match_strict"}


@dataclass(frozen=True)
class BlockDiagonal:
    """Which factor of a module is in blocks: by parts of the last name of a module.

    strict: whether every module must have such a factor
    """

    of_a: tuple[str, ...]
    of_b: tuple[str, ...]
    blocks: int
    strict: bool

    @classmethod
    def read(cls, fields: Fields) -> "BlockDiagonal | None":
        """The field of a LoRA configuration, or None where all factors are whole."""
        value = fields.get(FIELD)
        if value is None:
            return None
        if not isinstance(value, dict) or value.keys() - _KNOWN:
            raise invalid(FIELD, f"must be an object of {', '.join(sorted(_KNOWN))}")
        own = Fields(value)
        names = [own.names(name) or () for name in ("target_modules_bd_a", "target_modules_bd_b")]
        strict = value.get("match_strict") is None or own.flag("match_strict")
        if any(isinstance(parts, str) for parts in names):
            raise invalid(FIELD, "must list names")
        return cls(tuple(names[0]), tuple(names[1]), own.integer("nblocks", 1), strict)

    def take(
        self, draft: Draft, module: TargetModule, parts: tuple[str, str], rank: int
    ) -> tuple[Tensor, Tensor]:
        """A and B of a module, by their names in the file, with zeros beside their blocks.

        Raises AdapterInvalid where the blocks do not fit the module.
        """
        blocks_a, blocks_b = self._blocks_of(module)
        width = module.in_features if blocks_a > 1 else module.out_features
        if blocks_a * blocks_b > 1 and (width % self.blocks or rank % self.blocks):
            raise invalid(FIELD, f"{self.blocks} blocks do not divide the widths of {module.name}")
        a = draft.take(parts[0], rank, module.in_features // blocks_a)
        b = draft.take(parts[1], module.out_features, rank // blocks_b)
        return _whole(a, blocks_a), _whole(b, blocks_b)

    def _blocks_of(self, module: TargetModule) -> tuple[int, int]:
        """Of how many blocks A and B are; 1 where a factor is whole."""
        if module.kind == "embedding":
            raise invalid(FIELD, f"cannot be on the embedding {module.name}")
        last = module.name.rpartition(".")[2]
        in_a, in_b = (any(part in last for part in parts) for parts in (self.of_a, self.of_b))
        if in_a and in_b:
            raise invalid(FIELD, f"selects both A and B of {module.name}")
        if self.strict and not (in_a or in_b):
            raise invalid(FIELD, f"selects neither A nor B of {module.name}, with match_strict")
        return self.blocks if in_a else 1, self.blocks if in_b else 1


def _whole(factor: Tensor, blocks: int) -> Tensor:
    """The factor with its blocks of rows on a diagonal: `[rows, columns · blocks]`."""
    result: Tensor = torch.block_diag(*factor.chunk(blocks))  # type: ignore[no-untyped-call]
    return result

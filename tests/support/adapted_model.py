"""A tiny model whose modules are adapted, with lowered adapters in its slots."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.methods import lower
from weft.adapters.modules import adapt
from weft.adapters.plan import AdapterPlan
from weft.adapters.tensors import read_tensors
from weft.kernels.low_rank import LowRankTable
from weft.kernels.segments import Segments


def lower_folder(path: Path, model: PreTrainedModel) -> AdapterPlan:
    checkpoint = read_checkpoint(path)
    return lower(checkpoint, read_tensors(checkpoint), BaseModules.of(model))


class AdaptedModel:
    """`tiny_model(arch, **model)` with the adapter of folder i in slot i."""

    def __init__(self, arch: str, folders: Sequence[Path], **model: Any) -> None:
        self.model = tiny_model(arch, **model)
        base = BaseModules.of(self.model)
        self.plans = [lower_folder(folder, self.model) for folder in folders]
        arena = torch.zeros(sum(plan.elements for plan in self.plans))
        self.tables = {
            name: LowRankTable(arena, len(folders), target.in_features, target.out_features)
            for name, target in base.items()
            if target.refusal is None
        }
        self._fill(arena)
        self.state = adapt(self.model, self.tables).state

    def logits(
        self, ids: Tensor, slots: Sequence[int], keep: Sequence[int] | None = None
    ) -> Tensor:
        """Logits of sequences `ids` [batch, tokens], each with the adapter of its slot (-1: base).

        keep: the positions whose logits are wanted; all by default.
        """
        batch, tokens = ids.shape
        kept = range(tokens) if keep is None else keep
        self.state.segments = Segments.from_slots([s for s in slots for _ in range(tokens)])
        self.state.kept = Segments.from_slots([s for s in slots for _ in kept])
        with torch.inference_mode():
            logits: Tensor = self.model(
                input_ids=ids,
                position_ids=torch.arange(tokens).repeat(batch, 1),
                use_cache=False,
                logits_to_keep=torch.tensor(list(kept)),
            ).logits
        return logits

    def _fill(self, arena: Tensor) -> None:
        offset = 0
        for slot, plan in zip(count(), self.plans, strict=False):
            for name, op in plan.ops.items():
                places = []
                for tensor in (op.a, op.b):
                    arena[offset : offset + tensor.numel()] = tensor.flatten()
                    places.append(offset)
                    offset += tensor.numel()
                self.tables[name].set(slot, places[0], places[1], op.rank)

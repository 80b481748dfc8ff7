"""A tiny model whose modules are adapted, with lowered adapters in its slots."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from weft.adapters.arena import Arena
from weft.adapters.base import BaseModules, KVShape
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.methods import lower
from weft.adapters.modules import adapt
from weft.adapters.packed import Packed, pack
from weft.adapters.plan import AdapterPlan
from weft.adapters.pool import Pool, SlotRef
from weft.adapters.tensors import read_tensors
from weft.kernels.segments import Segments
from weft.server.engine import probe
from weft.server.engine.attention import AttentionStep, pools_of, use_paged_attention
from weft.server.engine.forward import Forward
from weft.server.engine.kv_memory import KVLayout
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.sequence import Share

PAGE_SIZE = 4
ALIGNMENT = 16


def lower_folder(
    path: Path, model: PreTrainedModel, attention: Mapping[str, KVShape] | None = None
) -> AdapterPlan:
    """attention: see BaseModules"""
    checkpoint = read_checkpoint(path)
    base = BaseModules.of(model, attention=attention)
    return lower(checkpoint, read_tensors(checkpoint), base)


class AdaptedModel:
    """`tiny_model(arch, **model)` on a paged cache, with adapter i, a folder or plan, in slot i.

    arch: or the model itself
    """

    def __init__(
        self,
        arch: str | PreTrainedModel,
        adapters: Sequence[Path | AdapterPlan],
        **model: Any,
    ) -> None:
        self.model = tiny_model(arch, **model) if isinstance(arch, str) else arch
        use_paged_attention(self.model)
        spec = KVSpec.discover(self.model)
        self.base = base = BaseModules.of(self.model, spec.refused)
        self.plans = [
            lower_folder(adapter, self.model, spec.shapes) if isinstance(adapter, Path) else adapter
            for adapter in adapters
        ]
        packed = [pack(p, torch.float32, ALIGNMENT, pin_memory=False) for p in self.plans]
        values = torch.zeros(max(4, sum(len(version.buffer) for version in packed)))
        adapted = adapt(self.model, base, spec.layouts, values, max(1, len(adapters)))
        self.arena = Arena(values, adapted.tables)
        self._layout = KVLayout(spec, PAGE_SIZE, torch.float32, torch.device("cpu"))
        self.forward = Forward(self.model, AttentionStep(), adapted.state, PAGE_SIZE)
        self._pool = Pool(values.nbytes, max(1, len(adapters)), ALIGNMENT)
        for version in packed:
            self._install(version)

    def install(self, adapter: Path) -> int:
        """Puts a further adapter in the place of one that was not used for longest; its slot."""
        plan = lower_folder(adapter, self.model)
        return self._install(pack(plan, torch.float32, ALIGNMENT, pin_memory=False))

    def _install(self, version: Packed) -> int:
        self.arena.check(version.plan)
        placement = self._pool.reserve(version.plan.digest, version.sizes)
        assert placement is not None
        for slot in placement.evicted:
            self.arena.clear(slot)
        installation = self.arena.install(placement, version)
        while not installation.finish():
            installation.advance(1 << 20)
        self._pool.commit(version.plan.digest)
        return placement.slot

    def allocate(self, pages: int) -> list[tuple[Tensor, Tensor]]:
        """Gives the cache so many pages, and returns each layer's pools of K and V."""
        self._layout.allocate(pages, self.forward.attention)
        return [pools_of(layer.module) for layer in self._layout.spec.layers]

    def logits(
        self, ids: Tensor, slots: Sequence[int], keep: Sequence[int] | None = None
    ) -> Tensor:
        """Logits of sequences `ids` [batch, tokens], each with the adapter of its slot (-1: base).

        All are computed in one step. keep: the positions whose logits are wanted; all by default.
        """
        count, tokens = ids.shape
        kept = range(tokens) if keep is None else keep
        sequences = probe.probes([tuple(row) for row in ids.tolist()], PAGE_SIZE)
        for seq, slot in zip(sequences, slots, strict=True):
            seq.shares = () if slot < 0 else (Share(SlotRef(slot, 0)),)
        batch = replace(
            self.forward.build(probe.whole(sequences)),
            kept=torch.tensor([row * tokens + at for row in range(count) for at in kept]),
            kept_segments=Segments.from_slots([slot for slot in slots for _ in kept]),
        )
        self.allocate(1 + count * -(-tokens // PAGE_SIZE))
        return self.forward.run(batch).view(count, len(kept), -1)

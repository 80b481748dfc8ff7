"""How keys and values that are not computed get into the pages of sequences. Decides nothing."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from weft.adapters.module_tables import ModuleTables
from weft.adapters.operations import AttentionPrefix
from weft.server.engine.attention import pools_of
from weft.server.engine.batch import places
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.step_plan import Scheduled, StepPlan


class PrefixCopies:
    """Copies an adapter's prefix, or what was kept, to the KV cache in each layer."""

    def __init__(self, spec: KVSpec, tables: Mapping[str, ModuleTables], page_size: int) -> None:
        """tables: of what the slots hold, by the layers' names"""
        self._layers = [
            (layer.module, tables[layer.name].table(AttentionPrefix)) for layer in spec.layers
        ]
        self._page_size = page_size
        self._kept: list[list[Tensor]] = []  # keys and values of each layer

    @torch.inference_mode()
    def keep(self, item: Scheduled) -> None:
        """Remembers what the positions of `item`, which was computed, and those before it hold."""
        rows = self._rows(item, 0, item.stop)
        self._kept = [
            [pool.flatten(0, 1)[rows.to(pool.device)] for pool in pools_of(module)]
            for module, _ in self._layers
        ]

    def place(self, plan: StepPlan) -> None:
        """Copies what `plan` counts on; to do so again changes nothing."""
        for item in plan.items:
            if item.copies:
                self._copy(item)

    @torch.inference_mode()
    def _copy(self, item: Scheduled) -> None:
        first, stop = item.start - item.copies, item.start
        rows = self._rows(item, first, stop)
        for (module, _), (keys, values) in zip(self._layers, self._sources(item), strict=True):
            k_pool, v_pool = pools_of(module)
            there = rows.to(k_pool.device)
            k_pool.flatten(0, 1)[there] = keys[first:stop].to(k_pool.dtype)
            v_pool.flatten(0, 1)[there] = values[first:stop].to(v_pool.dtype)

    def _rows(self, item: Scheduled, first: int, stop: int) -> Tensor:
        return torch.tensor(places(item.seq, first, stop, self._page_size))

    def _sources(self, item: Scheduled) -> Iterator[Iterable[Tensor]]:
        """Keys and values, [positions, heads, width] each, of every layer."""
        if not item.seq.lead:
            yield from self._kept
            return
        for _, table in self._layers:
            entries = (table.get(share.ref.slot) for share in item.shares)
            yield next(entry for entry in entries if entry is not None)

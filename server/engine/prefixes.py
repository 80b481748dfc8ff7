"""How the keys and values that adapters bring get into the pages of sequences. Decides nothing."""

from collections.abc import Mapping

import torch

from weft.adapters.module_tables import ModuleTables
from weft.adapters.operations import AttentionPrefix
from weft.server.engine.attention import pools_of
from weft.server.engine.batch import places
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.step_plan import Scheduled, StepPlan


class PrefixCopies:
    """Copies a prefix, in each layer, from the adapters' arena to the KV cache."""

    def __init__(self, spec: KVSpec, tables: Mapping[str, ModuleTables], page_size: int) -> None:
        """tables: of what the slots hold, by the layers' names"""
        self._layers = [
            (layer.module, tables[layer.name].table(AttentionPrefix)) for layer in spec.layers
        ]
        self._page_size = page_size

    def place(self, plan: StepPlan) -> None:
        """Copies what `plan` counts on; to do so again changes nothing."""
        for item in plan.items:
            if item.copies:
                self._copy(item)

    @torch.inference_mode()
    def _copy(self, item: Scheduled) -> None:
        first, stop = item.start - item.copies, item.start
        rows = torch.tensor(places(item.seq, first, stop, self._page_size))
        for module, table in self._layers:
            entries = (table.get(share.ref.slot) for share in item.shares)
            keys, values = next(entry for entry in entries if entry is not None)
            k_pool, v_pool = pools_of(module)
            there = rows.to(k_pool.device)
            k_pool.flatten(0, 1)[there] = keys[first:stop].to(k_pool.dtype)
            v_pool.flatten(0, 1)[there] = values[first:stop].to(v_pool.dtype)

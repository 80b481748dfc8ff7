"""From a stored version's digest to a packed plan, and the card that was written on the way.

Runs in a loader's process or thread; knows neither requests nor the device's memory.
"""

from collections.abc import Sequence

import torch

from weft.adapters.base import BaseModules
from weft.adapters.card import Card, describe
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.delta import LoadedWeights, Weights
from weft.adapters.methods import lower
from weft.adapters.packed import ALIGNMENT, Packed, pack
from weft.adapters.plan import AdapterPlan
from weft.adapters.store import Store
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.adapters.tensors import read_tensors


class Versions:
    """The versions in a store, lowered for one base.

    base_names: what the base is called   dtype: of the arena; its bytes are what a card names
    weights: the base's, if they are not in its modules
    """

    def __init__(
        self,
        store: Store,
        base: BaseModules,
        base_names: Sequence[str],
        dtype: torch.dtype,
        weights: Weights | None = None,
        *,
        pin_memory: bool = False,
    ) -> None:
        self._store = store
        self._base = base
        self._base_names = base_names
        self._dtype = dtype
        self._pin_memory = pin_memory
        self._weights = weights or LoadedWeights(base)
        self._cards: dict[str, Card] = {}

    def load(self, digest: str, tenant: TenantContext = NOBODY) -> Packed:
        """Reads, lowers and packs a version; raises AdapterInvalid, AdapterCorrupt or OSError.

        tenant: for whom, which makes no difference where this is no process of the loader's
        """
        checkpoint, plan = self.read(digest)
        self._cards[digest] = self.describe(checkpoint, plan)
        return self.pack(plan)

    def read(self, digest: str) -> tuple[Checkpoint, AdapterPlan]:
        """Reads and lowers a version; raises as `load` does."""
        checkpoint = self._store.read(digest)
        return checkpoint, lower(checkpoint, read_tensors(checkpoint), self._base)

    def describe(self, checkpoint: Checkpoint, plan: AdapterPlan) -> Card:
        """The card of a version that was read."""
        return describe(
            checkpoint,
            plan,
            self._base,
            dtype=self._dtype,
            base_names=self._base_names,
            weights=self._weights,
        )

    def pack(self, plan: AdapterPlan) -> Packed:
        """A plan in one buffer on the host; raises AdapterInvalid."""
        return pack(plan, self._dtype, ALIGNMENT, pin_memory=self._pin_memory)

    def give_up(self, digest: str) -> None:
        """A load under way cannot be ended: it goes on."""

    def close(self) -> None:
        """Nothing has to end."""

    def card(self, digest: str) -> Card | None:
        """The card of a version that was loaded since the engine started."""
        return self._cards.get(digest)

    def forget(self, digest: str) -> None:
        """Drops a version's card."""
        self._cards.pop(digest, None)

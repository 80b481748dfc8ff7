"""From a stored version's digest to a packed plan, and the card that was written on the way.

Runs on the loader's threads; knows neither requests nor the device's memory.
"""

from collections.abc import Sequence

import torch

from weft.adapters.base import BaseModules
from weft.adapters.card import Card, describe
from weft.adapters.delta import LoadedWeights
from weft.adapters.methods import lower
from weft.adapters.plan import AdapterPlan
from weft.adapters.store import Store
from weft.adapters.tensors import read_tensors


class Versions:
    """The versions in a store, lowered for one base.

    base_names: what the base is called   dtype: of the arena; its bytes are what a card names
    """

    def __init__(
        self, store: Store, base: BaseModules, base_names: Sequence[str], dtype: torch.dtype
    ) -> None:
        self._store = store
        self._base = base
        self._base_names = base_names
        self._dtype = dtype
        self._weights = LoadedWeights(base)
        self._cards: dict[str, Card] = {}

    def load(self, digest: str) -> AdapterPlan:
        """Reads and lowers a version; raises AdapterInvalid, AdapterCorrupt or OSError."""
        checkpoint = self._store.read(digest)
        plan = lower(checkpoint, read_tensors(checkpoint), self._base)
        self._cards[digest] = describe(
            checkpoint,
            plan,
            self._base,
            dtype=self._dtype,
            base_names=self._base_names,
            weights=self._weights,
        )
        return plan

    def card(self, digest: str) -> Card | None:
        """The card of a version that was loaded since the engine started."""
        return self._cards.get(digest)

    def forget(self, digest: str) -> None:
        """Drops a version's card."""
        self._cards.pop(digest, None)

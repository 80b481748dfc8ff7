"""Which experts compute which rows of a step, sorted so that each expert's rows lie together.

Knows no weights and no models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.kernels.segments import Segment, Segments


@dataclass(frozen=True, eq=False)
class Routing:
    """The pairs of a row and an expert that computes it: by expert, then in the rows' order.

    rows: int64 [pairs], the row of each pair   experts: int64 [pairs], its expert
    ends: int32 [number of experts], where each expert's pairs end
    places: int64 [pairs], where each pair stands in the router's [rows, choices]
    """

    rows: Tensor
    experts: Tensor
    ends: Tensor
    places: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> "Routing":
        """chosen: int64 [rows, choices], each row's experts; experts: how many there are"""
        by_expert, places = chosen.reshape(-1).sort(stable=True)
        numbers = torch.arange(experts, device=chosen.device)
        ends = torch.searchsorted(by_expert, numbers, right=True, out_int32=True)
        return cls(places // chosen.shape[1], by_expert, ends, places)

    def segments(self, segments: Segments) -> Segments:
        """The adapter rows among the pairs, a segment for each slot and expert.

        Waits for the device: the router has decided there how long each segment is.
        """
        count = len(segments.items) + 1
        owners = segments.once(_owners, self.rows.device)
        keys, sizes = torch.unique_consecutive(
            self.experts * count + owners[self.rows], return_counts=True
        )
        items: list[Segment] = []
        start = 0
        for key, size in torch.stack([keys, sizes], dim=1).tolist():
            expert, owner = divmod(key, count)
            if owner:
                slot = segments.items[owner - 1].slot
                items.append(Segment(slot, start, start + size, expert))
            start += size
        return Segments(tuple(items), start)

    def combine(self, y: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of each row's pairs, [rows, width].

        y: [pairs, width]   weights: [rows, choices], as the router gives them
        """
        weighted = y * weights.reshape(-1)[self.places, None]
        placed = torch.empty_like(weighted)
        placed[self.places] = weighted
        return placed.view(*weights.shape, -1).sum(dim=1)


def _owners(segments: Segments, device: torch.device) -> Tensor:
    """int64 [rows]: the number of each row's segment, counted from 1; 0 for rows of the base."""
    owners = torch.zeros(segments.rows, dtype=torch.int64)
    for number, segment in enumerate(segments, start=1):
        owners[segment.start : segment.stop] = number
    return owners.to(device)

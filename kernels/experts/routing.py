"""Which experts compute which rows of a step, sorted so that each expert's rows lie together.

Knows no weights and no models.
"""

from dataclasses import dataclass
from functools import cached_property

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

    def segments(self, segments: Segments) -> "RoutedSegments":
        """The adapter rows among the pairs, a segment for each slot and expert."""
        owners = segments.once(_owners, self.rows.device)
        return RoutedSegments(segments, self, owners[self.rows])

    def combine(self, y: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of each row's pairs, [rows, width].

        y: [pairs, width]   weights: [rows, choices], as the router gives them
        """
        weighted = y * weights.reshape(-1)[self.places, None]
        placed = torch.empty_like(weighted)
        placed[self.places] = weighted
        return placed.view(*weights.shape, -1).sum(dim=1)


class RoutedSegments(Segments):
    """The adapter rows among the pairs of a routing: the device knows how long each segment is.

    owners: int64 [pairs], 2i + 1 for pairs of the step's i-th segment, and even for rows of the
    base, ascending within an expert
    Whoever looks at the items waits for the device.
    """

    step: Segments
    routing: Routing
    owners: Tensor

    def __init__(self, step: Segments, routing: Routing, owners: Tensor) -> None:
        vars(self).update(step=step, routing=routing, owners=owners, rows=len(owners))

    @cached_property
    def items(self) -> tuple[Segment, ...]:
        """The segments, ascending by start."""
        sizes = torch.unique_consecutive(self.keys, return_counts=True)
        items: list[Segment] = []
        start = 0
        for key, size in torch.stack(sizes, dim=1).tolist():
            expert, owner = divmod(key, self._owners)
            if owner % 2:
                slot = self.step.items[owner // 2].slot
                items.append(Segment(slot, start, start + size, expert))
            start += size
        return tuple(items)

    @cached_property
    def keys(self) -> Tensor:
        """int64 [pairs], ascending; alike for the pairs of one segment and one expert."""
        return self.routing.experts * self._owners + self.owners

    @property
    def pair_slots(self) -> Tensor:
        """int64 [pairs]: the slot of each pair, -1 for rows of the base."""
        return self.step.once(_owned, self.owners.device)[self.owners]

    @property
    def slots(self) -> frozenset[int]:
        """The distinct slots in use."""
        return self.step.slots

    @property
    def most(self) -> int:
        """More segments than this there cannot be."""
        return min(len(self.routing.ends) * len(self.step.items), self.rows)

    def __bool__(self) -> bool:
        return bool(self.step)

    @property
    def _owners(self) -> int:
        return 2 * len(self.step.items) + 1


def _owners(segments: Segments, device: torch.device) -> Tensor:
    """int64 [rows]: see RoutedSegments."""
    owners = torch.zeros(segments.rows, dtype=torch.int64)
    for number, segment in enumerate(segments):
        owners[segment.start : segment.stop] = 2 * number + 1
        owners[segment.stop :] = 2 * number + 2
    return owners.to(device, non_blocking=True)


def _owned(segments: Segments, device: torch.device) -> Tensor:
    """int64 [2 segments + 1]: the slot of each owner."""
    slots = [-1, *(slot for segment in segments for slot in (segment.slot, -1))]
    return torch.tensor(slots).to(device, non_blocking=True)

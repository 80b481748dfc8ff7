"""The tiles that launches of the low-rank kernels are cut in: rows of one segment each.

Built on the host where that knows the segments, and else on the device, without waiting for it.
Where a step is captured once and replayed, they lie in memory that is written anew.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.kernels.experts.routing import RoutedSegments
from weft.kernels.segments import Segments


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Segments of `least` to `most` rows, which are cut into tiles of `rows`."""

    least: int
    most: int
    rows: int


class ReplayedSegments(Segments):
    """The adapter rows of a captured step, which the device is told anew before each replay.

    Kernels that are launched with these compute the rows that were told last.

    rank: no slot that is told has a pair of more
    """

    rank: int
    _tiles: dict[SizeClass, Tensor]
    _told: Segments | None

    def __init__(self, rows: int, rank: int) -> None:
        vars(self).update(items=(), rows=rows, rank=rank, _tiles={}, _told=None)

    def tell(self, segments: Segments) -> None:
        """The adapter rows of the next replays, of which the last rows may be in no segment.

        Raises ValueError where there are more rows than these.
        """
        if segments.rows > self.rows:
            raise ValueError(f"{segments.rows} rows for a captured step of {self.rows}")
        if segments is not self._told:
            for size, tiles in self._tiles.items():
                found = tiles_of(segments, size, tiles.device)
                count = 0 if found is None else len(found)
                if found is not None:
                    tiles[:count].copy_(found)
                tiles[count:].zero_()
            vars(self)["_told"] = segments

    def tiles(self, size: SizeClass, device: torch.device) -> Tensor | None:
        """Those of one class, in room for the most there can be; the others have no rows."""
        room = _most_tiles(self.rows, self.rows, size)
        if room and size not in self._tiles:
            self._tiles[size] = torch.zeros(room, 4, dtype=torch.int32, device=device)
            vars(self)["_told"] = None
        return self._tiles.get(size)

    def __bool__(self) -> bool:
        return True


def tiles_of(segments: Segments, size: SizeClass, device: torch.device) -> Tensor | None:
    """(slot, first row, end row, expert) of each tile, int32 [tiles, 4]; None without any.

    Made once for a step. Those made on the device, or for replays, may end with tiles without rows.
    """
    if isinstance(segments, ReplayedSegments):
        return segments.tiles(size, device)
    if isinstance(segments, RoutedSegments):
        return segments.once(routed_tiles, size)
    return segments.once(_tiles, size, device)


def _tiles(segments: Segments, size: SizeClass, device: torch.device) -> Tensor | None:
    tiles = [
        (segment.slot, start, min(start + size.rows, segment.stop), segment.expert)
        for segment in segments
        if size.least <= segment.stop - segment.start <= size.most
        for start in range(segment.start, segment.stop, size.rows)
    ]
    if not tiles:
        return None
    return torch.tensor(tiles, dtype=torch.int32).to(device, non_blocking=True)


def routed_tiles(segments: RoutedSegments, size: SizeClass) -> Tensor | None:
    """The tiles of segments whose lengths only the device knows, in room for the most there can be.

    None where there cannot be any.
    """
    room = _most_tiles(segments.rows, segments.most, size)
    if not room:
        return None
    keys, slots, device = segments.keys, segments.pair_slots, segments.keys.device
    row = torch.arange(len(keys), device=device)
    start, stop = (torch.searchsorted(keys, keys, right=right) for right in (False, True))
    length = stop - start
    fits = (length >= size.least) & (length <= size.most)
    begins = fits & (slots >= 0) & ((row - start) % size.rows == 0)
    # Rows where no tile begins are written past the end.
    place = torch.where(begins, begins.cumsum(0) - 1, room)
    end = torch.minimum(row + size.rows, stop)
    found = torch.stack([slots, row, end, segments.routing.experts], dim=1)
    tiles = torch.zeros(room + 1, 4, dtype=torch.int32, device=device)
    tiles[place] = found.to(torch.int32)
    return tiles[:room]


def _most_tiles(rows: int, segments: int, size: SizeClass) -> int:
    """Of so many rows in at most so many segments."""
    most = min(rows // size.least, segments)
    return min(rows, most + (rows // size.rows if size.most > size.rows else 0))

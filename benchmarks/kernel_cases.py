"""Kernels on the problems of a model's layers: what each must move and compute, and rival ways.

A case has several problems alike, which a caller goes through in turn, so that their bytes come
from memory as in a model of many layers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from weft.kernels.attention import paged_attention, write_kv
from weft.kernels.low_rank import arena_dtype, low_rank_add_
from weft.kernels.testing import LowRankProblem, PagedProblem, low_rank_problem, paged_problem

Way = Literal["weft", "gather", "peft"]
"""gather: torch's own operations over copies of what the rows need   peft: one adapter at a time"""

RANK = 16
MIXED_RANKS = (4, 8, 16, 32, 64)
PAGE_SIZE = 16
MOST_PROBLEMS = 1000


@dataclass(frozen=True)
class Shapes:
    """Sizes of one layer, and the rows of the cases.

    rotated_bytes: what is read before the same bytes are read again: more than caches hold
    """

    name: str
    hidden: int
    intermediate: int
    kv_heads: int
    group: int
    head_dim: int
    decodes: tuple[int, ...]
    prompt: int
    contexts: tuple[int, ...]
    rotated_bytes: float

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear maps that differ."""
        return {
            "hidden → hidden": (self.hidden, self.hidden),
            "hidden → inner": (self.hidden, self.intermediate),
            "inner → hidden": (self.intermediate, self.hidden),
        }


HALF_BILLION = Shapes("Qwen2.5-0.5B", 896, 4864, 2, 7, 64, (1, 32), 512, (128, 1024), 100e6)
EIGHT_BILLION = Shapes("Llama-3.1-8B", 4096, 14336, 8, 4, 128, (1, 16, 64), 4096, (1024, 8192), 4e8)


@dataclass(frozen=True)
class Case:
    """One kernel on `problems` problems alike; a way computes the one that it is given.

    bytes, flops: that must be moved and computed for one
    """

    kernel: str
    name: str
    dtype: torch.dtype
    problems: int
    bytes: float
    flops: float
    ways: dict[Way, Callable[[int], object]]


def shapes_for(device: torch.device) -> Shapes:
    """A small model's on a CPU, a large one's on a GPU."""
    return EIGHT_BILLION if device.type == "cuda" else HALF_BILLION


def cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[Callable[[], Case]]:
    """Makers of all cases; a case's problems are made when its maker is called."""
    for name, width in shapes.maps.items():
        for rows in shapes.decodes:
            title = f"{name}, decodes: {rows}, adapters: {rows}"
            yield low_rank(shapes, title, width, rows, [RANK] * rows, dtype, device)
        rows = shapes.decodes[-1]
        ranks = [MIXED_RANKS[index % len(MIXED_RANKS)] for index in range(rows)]
        yield low_rank(
            shapes, f"{name}, decodes: {rows}, ranks 4 to 64", width, rows, ranks, dtype, device
        )
        yield low_rank(
            shapes, f"{name}, decodes: {rows}, adapters: 1", width, rows, [RANK], dtype, device
        )
        for count in (1, 8):
            title = f"{name}, prompt rows: {shapes.prompt}, adapters: {count}"
            yield low_rank(shapes, title, width, shapes.prompt, [RANK] * count, dtype, device)
    for context in shapes.contexts:
        for rows in shapes.decodes:
            title = f"decodes: {rows}, keys: {context}"
            yield attention(shapes, title, [(context - 1, 1)] * rows, dtype, device)
        chunk = min(context, shapes.prompt)
        title = f"prompt rows: {chunk}, keys: {context}"
        yield attention(shapes, title, [(context - chunk, chunk)], dtype, device)
    yield cache_write(shapes, shapes.decodes[-1], dtype, device)


def low_rank(
    shapes: Shapes,
    name: str,
    width: tuple[int, int],
    rows: int,
    ranks: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[], Case]:
    """Rows of as many adapters as there are ranks, in segments of equal length."""
    arena = arena_dtype(device, dtype)
    in_features, out_features = width
    moved = sum(ranks) * sum(width) * arena.itemsize
    moved += rows * (in_features + 2 * out_features) * dtype.itemsize
    per_rank = rows / len(ranks) * sum(ranks)

    def make() -> Case:
        problems = [
            low_rank_problem(
                rows=rows,
                ranks=ranks,
                in_features=in_features,
                out_features=out_features,
                dtype=dtype,
                arena_dtype=arena,
                device=str(device),
                seed=seed,
            )
            for seed in range(_count(shapes, moved))
        ]
        ways: dict[Way, Callable[[int], object]] = {
            "weft": lambda i: _add(problems[i]),
            "peft": lambda i: _one_adapter_at_a_time(problems[i]),
        }
        if len(set(ranks)) == 1:
            stacks = [_stacked(problem, dtype) for problem in problems]
            ways["gather"] = lambda i: _gathered(problems[i], *stacks[i])
        flops = 2 * per_rank * sum(width)
        return Case("low_rank", name, dtype, len(problems), moved, flops, ways)

    return make


def attention(
    shapes: Shapes,
    name: str,
    lengths: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[], Case]:
    """Sequences of (cached, new) tokens, all alike."""
    kv_heads, dim = shapes.kv_heads, shapes.head_dim
    heads = kv_heads * shapes.group
    cached, new = lengths[0]
    tokens, rows = len(lengths) * (cached + new), len(lengths) * new
    moved = 2 * (tokens * kv_heads + rows * heads) * dim * dtype.itemsize
    seen = len(lengths) * (cached * new + new * (new + 1) / 2)

    def make() -> Case:
        problems = [
            paged_problem(
                lengths,
                kv_heads=kv_heads,
                group=shapes.group,
                k_dim=dim,
                v_dim=dim,
                page_size=PAGE_SIZE,
                dtype=dtype,
                device=str(device),
                seed=seed,
            )
            for seed in range(_count(shapes, moved))
        ]
        mask = torch.ones(new, cached + new, dtype=torch.bool, device=device).tril(cached)
        ways: dict[Way, Callable[[int], object]] = {
            "weft": lambda i: _attend(problems[i]),
            "gather": lambda i: _attend_gathered(problems[i], cached + new, mask),
        }
        kernel = "attention_decode" if new == 1 else "attention_prefill"
        flops = 4 * seen * heads * dim
        return Case(kernel, name, dtype, len(problems), moved, flops, ways)

    return make


def cache_write(
    shapes: Shapes, rows: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], Case]:
    """One new token of each of `rows` sequences."""

    def make() -> Case:
        kv_heads, dim = shapes.kv_heads, shapes.head_dim
        p = paged_problem(
            [(15, 1)] * rows,
            kv_heads=kv_heads,
            k_dim=dim,
            v_dim=dim,
            page_size=PAGE_SIZE,
            dtype=dtype,
            device=str(device),
        )
        k, v = (torch.ones(rows, kv_heads, dim, dtype=dtype, device=device) for _ in range(2))
        ways: dict[Way, Callable[[int], object]] = {
            "weft": lambda _: write_kv(k, v, p.k_pool, p.v_pool, p.batch),
            "gather": lambda _: _write_indexed(p, k, v),
        }
        return Case("cache_write", f"rows: {rows}", dtype, 1, 2 * (k.nbytes + v.nbytes), 0, ways)

    return make


def _count(shapes: Shapes, each: float) -> int:
    return max(1, min(MOST_PROBLEMS, int(shapes.rotated_bytes / each)))


def _add(p: LowRankProblem) -> None:
    low_rank_add_(p.y, p.x, p.table, p.segments)


def _one_adapter_at_a_time(p: LowRankProblem) -> None:
    """One gather, two matmuls and a scatter an adapter, in the base's dtype: peft's way."""
    for segment in p.segments:
        a, b = (tensor.to(p.x.dtype) for tensor in _pair(p, segment.slot))
        rows = torch.arange(segment.start, segment.stop, device=p.x.device)
        p.y[rows] += linear(linear(p.x[rows], a), b.T)


def _stacked(p: LowRankProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """aᵀ and b of all adapters, and each row's adapter."""
    pairs = [_pair(p, segment.slot) for segment in p.segments]
    counts = [segment.stop - segment.start for segment in p.segments]
    owner = torch.arange(len(pairs)).repeat_interleave(torch.tensor(counts)).to(p.x.device)
    a, b = (torch.stack(tensors).to(dtype) for tensors in zip(*pairs, strict=True))
    return a.mT.contiguous(), b, owner


def _gathered(p: LowRankProblem, a: Tensor, b: Tensor, owner: Tensor) -> None:
    """Each row's own pair copied, then two batched products."""
    p.y.add_((p.x[:, None] @ a[owner] @ b[owner])[:, 0])


def _pair(p: LowRankProblem, slot: int) -> tuple[Tensor, Tensor]:
    pair = p.table.pair(slot)
    assert pair is not None
    return pair


def _attend(p: PagedProblem) -> Tensor:
    return paged_attention(p.q, p.k_pool, p.v_pool, p.batch, scaling=p.q.shape[2] ** -0.5)


def _attend_gathered(p: PagedProblem, length: int, mask: Tensor) -> Tensor:
    """All pages copied to one tensor, then torch's attention."""
    tables = p.batch.block_tables.long()
    k, v = (pool[tables].flatten(1, 2)[:, :length].transpose(1, 2) for pool in (p.k_pool, p.v_pool))
    q = p.q.unflatten(0, (len(tables), -1)).transpose(1, 2)
    mask_or_none = mask if len(mask) > 1 else None
    return scaled_dot_product_attention(q, k, v, mask_or_none, enable_gqa=True)


def _write_indexed(p: PagedProblem, k: Tensor, v: Tensor) -> None:
    for pool, rows in ((p.k_pool, k), (p.v_pool, v)):
        pool.flatten(0, 1)[p.batch.slot_mapping] = rows

"""Plans and arenas of a made-up base with two modules, for tests that run no model."""

import torch
from torch import nn

from weft.adapters.arena import Arena
from weft.adapters.module_tables import ModuleTables
from weft.adapters.operations import LowRank
from weft.adapters.plan import AdapterPlan

MODULES = {"up": (24, 40), "down": (40, 24)}
"""The base's modules: in_features, out_features."""


def plan(digest: str, rank: int = 4, modules: tuple[str, ...] = ("up", "down")) -> AdapterPlan:
    """A plan whose values depend on the digest alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(digest.encode()[:6], "big"))
    ops = {}
    for module in modules:
        width_in, width_out = MODULES[module]
        a = torch.randn(rank, width_in, generator=generator)
        b = torch.randn(rank, width_out, generator=generator)
        ops[module] = (LowRank(a, b),)
    return AdapterPlan(digest, "lora", ops)


def plan_bytes(rank: int = 4) -> int:
    """Bytes of `plan(…, rank)` in float32."""
    return 4 * rank * sum(sum(widths) for widths in MODULES.values())


def arena(
    nbytes: int, slots: int = 4, device: str = "cpu"
) -> tuple[Arena, dict[str, ModuleTables]]:
    """A float32 arena filled with NaN, so that what is read before it was written shows."""
    values = torch.full((nbytes // 4,), torch.nan, device=device)
    tables = {
        name: ModuleTables(nn.Linear(*widths), values, slots) for name, widths in MODULES.items()
    }
    return Arena(values, tables), tables


def assert_installed(tables: dict[str, ModuleTables], slot: int, expected: AdapterPlan) -> None:
    for module, table in tables.items():
        assert table.low_rank is not None
        pair, op = table.low_rank.pair(slot), expected.of_kind(LowRank).get(module)
        if op is None:
            assert pair is None
        else:
            assert pair is not None
            torch.testing.assert_close(pair[0].cpu(), op.a, rtol=0, atol=0)
            torch.testing.assert_close(pair[1].cpu(), op.b, rtol=0, atol=0)


def is_empty(tables: dict[str, ModuleTables], slot: int) -> bool:
    """Whether no module's tables hold anything for the slot."""
    return not any(table.any_in([slot]) for table in tables.values())

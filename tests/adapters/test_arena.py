import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import arena, assert_installed, is_empty, plan, plan_bytes

from weft.adapters.arena import Arena, Installation
from weft.adapters.errors import AdapterInvalid
from weft.adapters.packed import Packed, pack
from weft.adapters.pool import Pool


def packed(digest: str, rank: int = 4, modules: tuple[str, ...] = ("up", "down")) -> Packed:
    return pack(plan(digest, rank, modules), torch.float32, 16, pin_memory=False)


def begin(pool: Pool, target: Arena, version: Packed) -> tuple[int, Installation]:
    placement = pool.reserve(version.plan.digest, version.sizes)
    assert placement is not None
    for slot in placement.evicted:
        target.clear(slot)
    return placement.slot, target.install(placement, version)


def run(installation: Installation, budget: int = 1 << 20) -> None:
    while not installation.finish():
        assert 0 < installation.advance(budget) <= max(budget, 4)


@given(budget=st.integers(1, 600), rank=st.integers(1, 9))
def test_slices_of_any_size_put_every_value_in_its_place(budget: int, rank: int) -> None:
    target, tables = arena(plan_bytes(rank))
    slot, installation = begin(Pool(plan_bytes(rank), 4), target, packed("a", rank))
    run(installation, budget)
    assert_installed(tables, slot, plan("a", rank))


def test_nothing_is_visible_before_the_last_slice() -> None:
    target, tables = arena(plan_bytes())
    slot, installation = begin(Pool(plan_bytes(), 4), target, packed("a"))
    copied = 0
    while copied < plan_bytes():
        assert not installation.finish()
        assert is_empty(tables, slot)
        copied += installation.advance(100)
    assert installation.finish()
    assert all(table.any_in([slot]) for table in tables.values())


def test_a_version_spreads_over_the_holes_that_others_left() -> None:
    capacity = 3 * plan_bytes(4)
    pool, (target, tables) = Pool(capacity, 4), arena(capacity)
    slots = {}
    for digest in "abc":
        slots[digest], installation = begin(pool, target, packed(digest))
        run(installation)
        pool.commit(digest)
    pool.acquire("b")
    slots["d"], installation = begin(pool, target, packed("d", rank=8))
    run(installation)
    assert_installed(tables, slots["d"], plan("d", rank=8))
    assert_installed(tables, slots["b"], plan("b"))


def test_a_slot_taken_over_keeps_nothing_of_its_last_version() -> None:
    pool, (target, tables) = Pool(plan_bytes(), 1), arena(plan_bytes())
    _, installation = begin(pool, target, packed("a"))
    run(installation)
    pool.commit("a")
    slot, installation = begin(pool, target, packed("b", modules=("down",)))
    assert is_empty(tables, slot)
    run(installation)
    assert_installed(tables, slot, plan("b", modules=("down",)))


def test_clearing_an_empty_slot_is_nothing() -> None:
    target, _ = arena(64)
    target.clear(3)


def test_a_module_that_the_base_lacks_is_refused_by_name() -> None:
    target, tables = arena(plan_bytes())
    del tables["up"]
    with pytest.raises(AdapterInvalid, match="up: is not a module"):
        Arena(target.values, tables).check(plan("a"))


@pytest.mark.gpu
def test_on_a_gpu_a_version_arrives_over_its_own_stream() -> None:
    target, tables = arena(plan_bytes(64), slots=2, device="cuda")
    version = pack(plan("a", 64), torch.float32, 16, pin_memory=True)
    slot, installation = begin(Pool(target.values.nbytes, 2), target, version)
    while not installation.finish():
        installation.advance(1000)
    assert_installed(tables, slot, plan("a", 64))

"""Which loads share a process: a tenant's own, one after the other, and no others."""

import os
import signal
from collections.abc import Iterator

import pytest
from loading_place import MIB, Place, assert_loads, load_under_way, processes_left
from peft_adapters import save_lora

from weft.adapters.errors import AdapterInvalid, LoadFailed
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.server.engine.loader.client import LoaderProcess
from weft.server.engine.loader.process import MOST_IDLE


@pytest.fixture
def roomy(place: Place) -> Iterator[LoaderProcess]:
    """One where a load may take so much that others take little of it."""
    loader = place.loader(memory=8192 * MIB)
    yield loader
    loader.close()


def test_a_tenants_loads_follow_each_other_in_a_process_and_no_others_do(
    roomy: LoaderProcess, good: str, asking: str
) -> None:
    acme, bolt = TenantContext("acme"), TenantContext("bolt")
    assert_loads(roomy, good, acme)
    first = processes_left(roomy, 1)
    assert_loads(roomy, asking, acme.background)
    assert processes_left(roomy, 1) == first
    assert_loads(roomy, good, bolt)
    both = processes_left(roomy, 2)
    assert first < both
    for tenant in (NOBODY, TenantContext("_canary")):  # each has a process that then ends
        assert_loads(roomy, good, tenant)
        assert processes_left(roomy, 2) == both
    for number in range(2 * MOST_IDLE):
        assert_loads(roomy, good, TenantContext(f"tenant{number}"))
    processes_left(roomy, MOST_IDLE, gone=both)  # who did nothing for longest had to go


def test_a_refusal_ends_no_process_and_a_kill_only_one(
    roomy: LoaderProcess, place: Place, good: str, asking: str
) -> None:
    acme = TenantContext("acme")
    foreign = place.store.put(
        save_lora(place.root / "of gpt2", "gpt2", r=2, target_modules=["c_attn"])
    )
    assert_loads(roomy, good, acme)
    first = processes_left(roomy, 1)
    with pytest.raises(AdapterInvalid):
        roomy.load(foreign, acme)
    assert processes_left(roomy, 1) == first
    assert_loads(roomy, good, acme)
    assert processes_left(roomy, 1) == first
    with (
        place.hooked(lambda: os.kill(load_under_way(roomy), signal.SIGKILL)),
        pytest.raises(LoadFailed),
    ):
        roomy.load(asking, acme)
    assert_loads(roomy, good, acme)
    assert processes_left(roomy, 1) != first


def test_a_process_that_took_much_loads_no_more(place: Place, good: str) -> None:
    """Less than nine tenths of what one load may take would be left for the next one."""
    acme = TenantContext("acme")
    strict = place.loader(memory=64 * MIB)  # the stack of a thread takes an eighth of that
    try:
        assert_loads(strict, good, acme)
        processes_left(strict, 0)
        assert_loads(strict, good, acme)
    finally:
        strict.close()

"""The loader as the engine uses it: the same plans as in a thread, and nothing that can happen to
it is more than one failed load."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_files import edit_tensors, write_adapter
from loading_place import (
    LORA,
    MIB,
    Place,
    assert_loads,
    has_ended,
    load_under_way,
    loads_under_way,
    wait_for_rest,
)
from peft_adapters import save_lora
from peft_methods import save_method
from tiny_models import tiny_model

from weft.adapters.base import BaseModules
from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, LoadFailed
from weft.server.engine.loader.client import LoaderProcess
from weft.server.engine.loader.launch import Loading, launch_process
from weft.server.engine.versions import Versions

METHODS = ("hra", "osf", "oft", "shira", "lokr", "ia3", "saved modules are no targets")


@pytest.fixture(scope="module")
def loader(place: Place) -> Iterator[LoaderProcess]:
    """One for all tests that leave it alive: to import torch takes its time."""
    loader = place.loader()
    yield loader
    loader.close()


@pytest.mark.parametrize("name", ["lora", "dora", "olora", *METHODS])
def test_plans_and_cards_are_those_of_a_thread(
    loader: LoaderProcess, place: Place, name: str
) -> None:
    more = {"dora": {"use_dora": True}, "olora": {"init_lora_weights": "olora"}}
    if name in METHODS:
        digest = place.put(name, lambda path: save_method(path, "llama", name))
    else:
        digest = place.lora(name, **more.get(name, {}))
    expected, found = place.versions.load(digest), loader.load(digest)
    assert [(module, type(op)) for module, op in found.plan] == [
        (module, type(op)) for module, op in expected.plan
    ]
    for (_, mine), (_, theirs) in zip(found.plan, expected.plan, strict=True):
        for tensor, other in zip(mine.tensors, theirs.tensors, strict=True):
            assert torch.equal(tensor, other)
    assert (found.sizes, found.plan.traits) == (expected.sizes, expected.plan.traits)
    assert loader.card(digest) == place.versions.card(digest)
    loader.forget(digest)
    assert loader.card(digest) is None


@pytest.mark.parametrize("quantized", [False, True])
def test_values_that_are_not_in_the_files_come_from_the_engine(
    loader: LoaderProcess, place: Place, asking: str, quantized: bool
) -> None:
    """As they would be of a base that is quantised, or that transformers converted."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight *= 2
    changed = BaseModules.of(model)
    honest = place.base.inner, place.base.owners
    place.base.inner = changed
    if quantized:
        place.base.owners = {n: replace(o, quantized=True) for n, o in changed.owners.items()}
    try:
        found = loader.load(asking)
    finally:
        place.base.inner, place.base.owners = honest
    expected = Versions(place.store, changed, ("llama",), torch.float32).load(asking)
    assert torch.equal(found.buffer, expected.buffer)
    assert not torch.equal(found.buffer, place.versions.load(asking).buffer)


def test_values_that_are_in_the_files_are_read_there(
    loader: LoaderProcess, asking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine gives a sample of each parameter, and no parameter."""
    monkeypatch.setattr("weft.server.engine.loader.client.seal", None)
    assert_loads(loader, asking)


def test_a_refusal_says_what_it_says_in_a_thread(loader: LoaderProcess, place: Place) -> None:
    path = save_lora(place.root / "foreign", "gpt2", r=4, target_modules=["c_attn"])
    digest = place.store.put(path)
    reasons = []
    for load in (loader.load, place.versions.load):
        with pytest.raises(AdapterInvalid, match="target_modules") as refused:
            load(digest)
        reasons.append((refused.value.where, refused.value.reason))
    assert reasons[0] == reasons[1]


def test_damage_is_found(loader: LoaderProcess, place: Place, good: str) -> None:
    damaged = place.lora("damaged", seed=3)
    weights = place.store.folder(damaged) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AdapterCorrupt):
        loader.load(damaged)
    assert_loads(loader, good)


def test_what_needs_too_much_memory_is_refused(
    loader: LoaderProcess, place: Place, good: str
) -> None:
    def large(path: Path) -> Path:
        save_lora(path, "llama", **LORA)
        return edit_tensors(path, lambda t: t | {"unused": torch.ones(300 * MIB // 4)})

    with pytest.raises(AdapterInvalid, match=r"268435456 bytes .*--loader-memory"):
        loader.load(place.put("large", large))
    assert_loads(loader, good)


def test_what_takes_too_long_is_refused(place: Place, good: str) -> None:
    reflections = 4000  # each is composed with all before it
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.hra_u": torch.ones(64, reflections)
        for layer in range(2)
    }
    config = {"peft_type": "HRA", "r": reflections, "target_modules": ["q_proj"]}
    digest = place.put("slow", lambda path: write_adapter(path, config, tensors))
    hurried = place.loader(seconds=2)
    try:
        with pytest.raises(AdapterInvalid, match=r"more than 2 s .*--loader-timeout"):
            hurried.load(digest)
        assert_loads(hurried, good)
    finally:
        hurried.close()


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGKILL, LoadFailed),
        (signal.SIGTERM, LoadFailed),
        (signal.SIGALRM, LoadFailed),
        (signal.SIGSEGV, AdapterInvalid),
        (signal.SIGXCPU, AdapterInvalid),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_load_that_is_killed_fails_alone(
    loader: LoaderProcess,
    place: Place,
    good: str,
    asking: str,
    number: signal.Signals,
    error: type[Exception],
) -> None:
    assert_loads(loader, good)
    before = loader.pid
    with (
        place.hooked(lambda: os.kill(load_under_way(loader), number)),
        pytest.raises(error),
    ):
        loader.load(asking)
    assert_loads(loader, good)
    assert loader.pid == before


def test_loads_go_on_beside_each_other(
    loader: LoaderProcess, place: Place, good: str, asking: str
) -> None:
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    rows = {"prompt_embeddings": torch.ones(3, 64)}
    prompt = place.put("prompt", lambda path: write_adapter(path, config, rows))
    waiting, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        if threading.current_thread() is not slow:
            return
        waiting.set()
        assert go_on.wait(60)

    results: list[str] = []
    slow = threading.Thread(target=lambda: results.append(loader.load(asking).plan.digest))
    with place.hooked(wait):
        slow.start()
        assert waiting.wait(60)
        assert_loads(loader, prompt)  # it needs no values
        assert not results
        go_on.set()
        slow.join()
    assert results == [asking]


def test_a_load_that_is_given_up_ends_with_its_process_and_no_other_does(
    loader: LoaderProcess, place: Place, good: str
) -> None:
    reflections = 4000  # each is composed with all before it
    tensor = {"base_model.model.model.layers.0.self_attn.q_proj.hra_u": torch.ones(64, reflections)}
    config = {"peft_type": "HRA", "r": reflections, "target_modules": ["0.self_attn.q_proj"]}
    endless = place.put("endless", lambda path: write_adapter(path, config, tensor))
    failures: list[LoadFailed] = []

    def load() -> None:
        with pytest.raises(LoadFailed) as failure:
            loader.load(endless)
        failures.append(failure.value)

    assert_loads(loader, good)
    wait_for_rest(loader)
    thread = threading.Thread(target=load)
    thread.start()
    process = load_under_way(loader)
    loader.give_up(good)
    assert_loads(loader, good)
    assert process in loads_under_way(loader)
    loader.give_up(endless)
    thread.join()
    assert len(failures) == 1
    while process in loads_under_way(loader):
        os.sched_yield()
    assert_loads(loader, good)


def test_the_loader_is_confined(loader: LoaderProcess, good: str) -> None:
    assert_loads(loader, good)
    status = Path(f"/proc/{loader.pid}/status").read_text()
    for line in ("Name:\tweft-loader", "Seccomp:\t2", "NoNewPrivs:\t1", "Threads:\t1"):
        assert f"{line}\n" in status


def test_a_loader_that_is_killed_is_started_again_and_one_that_is_closed_is_not(
    place: Place, good: str, asking: str
) -> None:
    loader = place.loader()

    def kill() -> None:
        assert loader.pid is not None
        os.kill(loader.pid, signal.SIGKILL)
        while not has_ended(loader.pid):
            os.sched_yield()

    with place.hooked(kill), pytest.raises(LoadFailed):
        loader.load(asking)
    first = loader.pid
    assert_loads(loader, good)
    second = loader.pid
    assert first != second

    with place.hooked(loader.close), pytest.raises(LoadFailed):
        loader.load(asking)
    with pytest.raises(LoadFailed):
        loader.load(good)
    assert not Path(f"/proc/{second}").exists()


def test_a_loader_that_dies_at_once_is_not_started_in_a_loop(place: Place, good: str) -> None:
    starts = 0

    def broken() -> Loading:
        nonlocal starts
        starts += 1
        loading = launch_process()
        loading.kill()
        return loading

    loader = place.loader(launch=broken)
    for _ in range(8):
        with pytest.raises(LoadFailed):
            loader.load(good)
    loader.close()
    assert 1 <= starts <= 3

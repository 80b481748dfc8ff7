"""A good folder of any method, damaged in some way, through registry, store and engine.

It is refused by the name of what is wrong, or computed as stock peft computes it with every tensor
in use, or as before the damage, which then only looked like one. What is refused leaves nothing.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from adapterhub import attach
from damage import EDITS, Damage, Edit, Folder
from engines import TENANT, greedy, load, run, tiny_engine
from every_method import BEGINNING, each_method
from exactness import TOLERANCE, answers_of
from forward_loops import LoopOracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, tiny_model
from torch import Tensor

from weft.adapters.errors import AdapterInvalid
from weft.adapters.registry import Registry
from weft.adapters.store import Store
from weft.server.engine.engine import Engine
from weft.server.engine.messages import Failed, Unload

SPECIMENS = each_method("llama")
MODULES = {name for name, _ in tiny_model("llama").named_modules()}


@dataclass(frozen=True)
class Answer:
    """logprobs: of the first token   unused: names in the file or the model that peft left out"""

    logprobs: Tensor
    unused: frozenset[str]

    def equals(self, logprobs: Tensor) -> bool:
        """Up to rounding, which grows with what a changed byte may have made of a value."""
        difference = float((self.logprobs - logprobs).abs().max())
        return difference <= TOLERANCE + 1e-5 * float(self.logprobs.abs().max())


class Workshop:
    """Good folders, made as they are needed, and a server's registry, store and engine."""

    def __init__(self, root: Path, engine: Engine, registry: Registry, store: Store) -> None:
        self.root = root
        self.engine = engine
        self.registry = registry
        self.store = store
        self.good: dict[str, Answer] = {}
        self.empty = self.files()

    def files(self) -> set[Path]:
        return {path for path in self.store.root.rglob("*") if path.is_file()}

    def original(self, name: str) -> Answer:
        """What peft answers with a good folder, which then lies in `root / name`."""
        if name not in self.good:
            SPECIMENS[name].make(self.root / name, 0)
            answer = peft_answer(self.root / name)
            assert answer is not None
            self.good[name] = answer
        return self.good[name]

    def copy(self, name: str) -> Path:
        target = self.root / "damaged"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.root / name, target))

    def answer(self, folder: Path) -> Tensor | AdapterInvalid:
        """Log-probabilities of the first token, or why there are none."""
        try:
            with self.registry.ingest(TENANT, folder) as upload:
                loaded = load(self.engine, upload.digest)
                if isinstance(loaded, Failed):
                    assert loaded.code == "adapter_invalid"
                    return AdapterInvalid(loaded.where, loaded.reason)
                request = greedy("r", BEGINNING, 1, adapter=upload.digest, logprobs=VOCAB_SIZE)
                logprobs = answers_of(run(self.engine, request))["r"].logprobs[0]
                run(self.engine, Unload("u", upload.digest))
                return logprobs
        except AdapterInvalid as error:
            return error

    def check_nothing_is_left(self) -> None:
        self.registry.catch_up()
        assert not self.store.digests()
        assert not self.registry.list(TENANT)
        assert self.files() == self.empty
        assert self.engine.residency.states() == ()
        assert self.engine.check() == ()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    root = tmp_path_factory.mktemp("workshop")
    with tiny_engine(root, adapter_memory=8 << 20) as engine:
        store = Store(root / "store")
        registry = Registry(root / "registry.sqlite", store)
        yield Workshop(root / "adapters", engine, registry, store)
        registry.close()


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(SPECIMENS)),
    edit=st.sampled_from(sorted(EDITS)),
    seed=st.integers(0, 2**32),
)
def test_served_rightly_or_refused_by_name(
    name: str, edit: str, seed: int, workshop: Workshop
) -> None:
    original = workshop.original(name)
    folder = Folder.read(workshop.copy(name))
    damage = EDITS[edit](folder, Random(seed))
    found = workshop.answer(folder.path)
    workshop.check_nothing_is_left()
    if isinstance(found, AdapterInvalid):
        check_refusal(found, damage, folder)
    elif not original.equals(found):
        assert damage.expected == "either"
        theirs = peft_answer(folder.path)
        assert theirs is not None, "peft does not even load it"
        assert theirs.unused == original.unused, "peft does not use all of it"
        assert theirs.equals(found)
    else:
        assert damage.expected != "refused"


def dropped_use_dora(folder: Folder, random: Random) -> Damage:
    folder.config["use_dora"] = False
    folder.write()
    return Damage("refused")


def doubled_alpha(folder: Folder, random: Random) -> Damage:
    assert folder.config["use_rslora"]
    folder.config["lora_alpha"] *= 2
    folder.write()
    return Damage("either")


# The good folder, what is done to it, the end of the name that the refusal gives, or how it is
# served, and whether peft serves something else without a word.
MUTATIONS: dict[str, tuple[str, Edit, str, bool]] = {
    "dropped use_dora": ("dora", dropped_use_dora, ".lora_magnitude_vector", True),
    "missing key prefix": ("lora", EDITS["all tensors renamed"], "as before", True),
    "extra tensor": ("lora", EDITS["a tensor too many"], "_of_next_year", False),
    "unknown truthy field": ("lora", EDITS["an unknown field"], "a_field_of_next_year", False),
    "resized vocabulary": ("lora", EDITS["a resized vocabulary"], ".weight", False),
    "CorDA": ("lora", EDITS["trained with corda"], "init_lora_weights", False),
    "wrong lora_alpha beside rsLoRA": ("lora", doubled_alpha, "as peft", False),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_that_a_tenant_may_upload(mutation: str, workshop: Workshop) -> None:
    name, edit, outcome, is_served_wrongly = MUTATIONS[mutation]
    original = workshop.original(name)
    folder = Folder.read(workshop.copy(name))
    edit(folder, Random(0))
    found = workshop.answer(folder.path)
    theirs = peft_answer(folder.path)
    workshop.check_nothing_is_left()
    if isinstance(found, AdapterInvalid):
        assert found.where.endswith(outcome)
    elif outcome == "as before":
        assert original.equals(found)
    else:
        assert outcome == "as peft"
        assert theirs is not None
        assert theirs.equals(found)
        assert not original.equals(found)
    wrongly = theirs is not None and not original.equals(theirs.logprobs)
    assert wrongly == (is_served_wrongly or outcome == "as peft")


def check_refusal(error: AdapterInvalid, damage: Damage, folder: Folder) -> None:
    assert damage.expected != "the same", error
    assert error.reason
    assert str(folder.path.parent) not in str(error)
    if damage.where is not None:
        assert error.where == damage.where, error
    files = (
        "adapter_config.json",
        "adapter_model.safetensors",
        *(p.name for p in files_of(folder)),
    )
    named = {*folder.tensors, *MODULES}
    assert error.where.startswith(files) or error.where in named or in_header(error.where, folder)


def files_of(folder: Folder) -> list[Path]:
    return [folder.weights, *folder.path.iterdir()]


def in_header(name: str, folder: Folder) -> bool:
    """Whether the file names a tensor so, maybe since one of its bytes was changed."""
    return name.encode() in folder.weights.read_bytes()


def peft_answer(folder: Path) -> Answer | None:
    """What peft, or for AdapterHub's the hooks, answer with a folder; None if they cannot."""
    left_out: set[str] = set()
    load_adapter = PeftModel.load_adapter

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = load_adapter(*args, **kwargs)
        left_out.update(result.missing_keys, result.unexpected_keys)
        return result

    try:
        with patch.object(PeftModel, "load_adapter", watched):
            hub = (folder / "adapter.safetensors").exists()
            oracle = hooked(folder, left_out) if hub else LoopOracle.of("llama", folder)
            (answer,) = oracle.answers([BEGINNING], 1)
    except Exception:  # noqa: BLE001 - whatever a damaged folder makes of it
        return None
    return Answer(answer.logprobs[0], frozenset(left_out))


def hooked(folder: Path, left_out: set[str]) -> LoopOracle:
    parts = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")
    tensors = load_file(folder / "adapter.safetensors")
    left_out.update(name for name in tensors if not name.endswith(parts))
    return LoopOracle(attach(tiny_model("llama"), folder))

"""What is packed before there is a model is what the model would have packed, or nobody's."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stored_models import load_stored
from tiny_models import tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft.server.engine import half_weight, hardware
from weft.server.engine.packed_ahead import PackedAhead, Weight, likely_weights
from weft.server.engine.packed_linear import PackedLinear, begin_packing

pytestmark = pytest.mark.skipif(
    not half_weight.is_available(), reason="this torch has no FBGEMM here"
)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large, for tiny models, and a processor that computes in float32."""
    for module in ("packed_ahead", "packed_linear", "stored_weights"):
        monkeypatch.setattr(f"weft.server.engine.{module}.SMALLEST", 1000)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(hardware, "_cpu_has_bf16", lambda: False)


@pytest.fixture(params=["llama", "qwen2", "gemma2", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def pack(model: nn.Module, ahead: PackedAhead) -> int:
    with ThreadPoolExecutor(2) as threads:
        ahead.go_on(threads)
        return begin_packing(model, threads, ahead)()


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that are packed from now on."""
    shapes = []
    make = half_weight.HalfWeight.__init__

    def init(self: half_weight.HalfWeight, stored: Tensor, *rest: object) -> None:
        make(self, stored, *rest)  # type: ignore[arg-type]
        shapes.append(stored.shape)  # not where it was paused

    monkeypatch.setattr(half_weight.HalfWeight, "__init__", init)
    return shapes


def test_a_model_has_the_same_bits_and_nothing_is_packed_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_stored(folder, torch.bfloat16)
    count = pack(plain, PackedAhead())
    shapes = counted(monkeypatch)
    ahead = PackedAhead(likely_weights(folder, "auto", "auto"))
    ahead.begin()
    ahead.pause()
    model = load_stored(folder, torch.bfloat16)
    assert pack(model, ahead) == count == len(shapes)
    assert all(isinstance(one, PackedLinear) for _, one in _layers(model))
    assert torch.equal(logits(model), logits(plain))


def _layers(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    return [
        (name, one)
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and one.weight.numel() >= 1000
    ]


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_nothing_for_a_device_that_packs_nothing(
    device: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert likely_weights(folder, device, "auto") == []
    assert likely_weights(folder, "cpu", "auto") != []


def test_nothing_where_another_dtype_is_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert likely_weights(folder, "auto", "bfloat16") == []
    monkeypatch.setattr(hardware, "_cpu_has_bf16", lambda: True)
    monkeypatch.setattr(hardware, "_BF16_PARAMETERS", 0)
    assert likely_weights(folder, "auto", "auto") == []
    assert likely_weights(folder, "auto", "float32") != []


def test_nothing_where_memory_is_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * sum(weight.values.nbytes for weight in likely_weights(folder, "cpu", "auto"))
    for free, is_enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(hardware, "free_memory", lambda device, free=free: free)
        assert bool(likely_weights(folder, "cpu", "auto")) == is_enough


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: save_file({"a.0.weight": torch.ones(99, 99)}, folder / "other.safetensors"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"not tensors"),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
    ids=["float32 beside it", "damaged", "none"],
)
def test_nothing_of_other_files(spoil: Callable[[Path], object], folder: Path) -> None:
    spoil(folder)
    assert likely_weights(folder, "cpu", "auto") == []


def test_what_names_tell(tmp_path: Path) -> None:
    def names(*found: str) -> list[int]:
        tensors = {name: torch.ones(50 + at, 50).half() for at, name in enumerate(found)}
        save_file(tensors, tmp_path / "model.safetensors")
        return sorted(len(one.values) - 50 for one in likely_weights(tmp_path, "cpu", "auto"))

    assert names("layers.0.up.weight", "layers.0.experts.3.up.weight") == [0]
    assert names("embed.weight", "layers.0.up.weight") == [0, 1]  # a tied table is the head's
    assert names("embed.weight", "layers.0.up.weight", "lm_head.weight") == [1]


def weight(seed: int, bias: Tensor | None = None) -> Weight:
    values = torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))
    return Weight(values.bfloat16(), bias)


def packed(*ones: Weight) -> PackedAhead:
    ahead = PackedAhead(ones)
    with ThreadPoolExecutor(1) as threads:
        ahead.go_on(threads)
    return ahead


def test_taken_once_and_only_with_all_its_bits() -> None:
    bias = torch.ones(64)
    assert packed(weight(0)).take(weight(1)) is None
    assert packed(weight(0)).take(weight(0, bias)) is None
    assert packed(weight(0, bias)).take(weight(0, 2 * bias)) is None
    other = weight(0)
    other.values[0, 1] += 1  # no value that they are looked for by
    assert other.key == weight(0).key
    assert packed(weight(0)).take(other) is None
    ahead = packed(weight(0, bias))
    assert ahead.take(weight(0, bias.clone())) is not None
    assert ahead.take(weight(0, bias)) is None


def test_what_cannot_be_packed_is_not_there() -> None:
    infinite = Weight(torch.full((64, 32), torch.inf, dtype=torch.bfloat16), None)
    assert packed(infinite).take(infinite) is None


def test_what_is_dropped_is_not_there() -> None:
    ahead = packed(weight(0))
    ahead.drop()
    assert ahead.take(weight(0)) is None

"""Every method that changes linear layers, from peft's own files, against peft's own forward."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapted_model import AdaptedModel, lower_folder
from peft.tuners.boft import layer as boft_layer
from peft_methods import METHODS, method_logits, save_method
from tiny_models import tiny_model
from torch import Tensor

from weft.adapters.operations import Dense, Kronecker, LowRank, Sparse

TOLERANCE = 2e-5
IDS = torch.randint(5, 512, (2, 13), generator=torch.Generator().manual_seed(3))
LAYER = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    root = tmp_path_factory.mktemp("methods")

    def folder(name: str, arch: str = "llama") -> Path:
        path = root / arch / name
        if not path.exists():
            save_method(path, arch, name)
        return path

    return folder


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "gpt2"])
def test_one_batch_of_all_methods_equals_peft_with_each_alone(
    arch: str, saved: Callable[[str, str], Path]
) -> None:
    names = [n for n, method in METHODS.items() if arch in method.archs]
    folders = [saved(name, arch) for name in names]
    slots = [-1, *range(len(names)), -1]
    ids = torch.randint(5, 512, (len(slots), 13), generator=torch.Generator().manual_seed(3))
    model = AdaptedModel(arch, folders)
    base = model.logits(ids, [-1] * len(slots))
    logits = model.logits(ids, slots)
    assert torch.equal(logits[0], base[0])
    assert torch.equal(logits[-1], base[-1])
    wrong = {}
    for row, (name, folder) in enumerate(zip(names, folders, strict=True), start=1):
        expected = method_logits(arch, folder, ids[row : row + 1])[0]
        difference = float((logits[row] - expected).abs().max())
        effect = float((expected - base[row]).abs().max())
        if difference > TOLERANCE or effect < 0.1:
            wrong[name] = (difference, effect)
    assert not wrong


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vera", LowRank),
        ("loha", LowRank),
        ("loha of full rank", Dense),
        ("lokr", Kronecker),
        ("hra", LowRank),
        ("miss bat", Dense),
        ("hira", Dense),
        ("shira", Sparse),
        ("waveft, no transform", Sparse),
    ],
)
def test_the_form_that_is_served(
    name: str, kind: type[object], saved: Callable[[str], Path]
) -> None:
    plan = lower_folder(saved(name), tiny_model("llama"))
    assert {type(op) for _, op in plan} == {kind}
    assert all(tensor.is_contiguous() for _, op in plan for tensor in op.tensors)


def test_a_butterfly_of_several_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Extension:
        """What peft compiles for CUDA: each factor's blocks on a diagonal."""

        @staticmethod
        def forward(blocks: Tensor) -> list[Tensor]:
            return [torch.stack([torch.block_diag(*factor) for factor in blocks])]

    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: Extension)
    folder = save_method(tmp_path, "llama", "boft", boft_n_butterfly_factor=3, boft_block_size=4)
    expected = method_logits("llama", folder, IDS)
    logits = AdaptedModel("llama", [folder]).logits(IDS, [0, 0])
    assert (logits - expected).abs().max() < TOLERANCE

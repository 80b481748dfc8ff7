"""Ways in which an adapter's folder may be wrong, or only look so: edits drawn at random."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from adapter_files import CONFIG
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE
from torch import Tensor

Expected = Literal["refused", "the same", "either"]
_UNKNOWN = "a_field_of_next_year"
_OTHER_METHODS = ("LORA", "VERA", "IA3", "OFT", "SHIRA", "LN_TUNING", "CPT", "LILY", "next", 7)
_ODD_VALUES = ("all", [], [3], {"q_proj": 7}, -2, 0, 3, 0.5, True, None)


@dataclass
class Folder:
    """A folder as its two files' contents; `write` makes it so."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: Path

    @classmethod
    def read(cls, path: Path) -> "Folder":
        """A folder of peft's, or of AdapterHub's."""
        (weights,) = path.glob("*.safetensors")
        return cls(path, json.loads((path / CONFIG).read_text()), load_file(weights), weights)

    def write(self) -> None:
        (self.path / CONFIG).write_text(json.dumps(self.config))
        tensors = {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(tensors, self.weights)


@dataclass(frozen=True)
class Damage:
    """What was done, what must come of it, and the tensor, field or file to be named, if known."""

    expected: Expected
    where: str | None = None


Edit = Callable[[Folder, Random], Damage]
EDITS: dict[str, Edit] = {}


def _of_files(edit: Edit) -> Edit:
    EDITS[edit.__name__.replace("_", " ")] = edit
    return edit


def _of_contents(change: Edit) -> Edit:
    @wraps(change)
    def edit(folder: Folder, random: Random) -> Damage:
        damage = change(folder, random)
        folder.write()
        return damage

    return _of_files(edit)


def _field(folder: Folder, random: Random) -> str:
    return random.choice(sorted(folder.config))


def _tensor(folder: Folder, random: Random) -> str:
    return random.choice(sorted(folder.tensors))


def _replace(folder: Folder, name: str, tensor: Tensor) -> Damage:
    folder.tensors[name] = tensor
    return Damage("refused", name)


# ---- the configuration


@_of_contents
def a_field_dropped(folder: Folder, random: Random) -> Damage:
    del folder.config[_field(folder, random)]
    return Damage("either")


@_of_contents
def a_field_changed(folder: Folder, random: Random) -> Damage:
    folder.config[_field(folder, random)] = random.choice(_ODD_VALUES)
    return Damage("either")


@_of_contents
def a_number_doubled(folder: Folder, random: Random) -> Damage:
    numbers = sorted(k for k, v in folder.config.items() if type(v) in (int, float))
    if numbers:
        folder.config[random.choice(numbers)] *= 2
    return Damage("either")


@_of_contents
def an_unknown_field(folder: Folder, random: Random) -> Damage:
    folder.config[_UNKNOWN] = random.choice([1, "x", [0], {"a": None}, True])
    return Damage("refused", f"{CONFIG}: {_UNKNOWN}")


@_of_contents
def an_unknown_field_that_is_off(folder: Folder, random: Random) -> Damage:
    folder.config[_UNKNOWN] = random.choice([0, "", [], {}, False, None])
    return Damage("the same")


@_of_contents
def another_method(folder: Folder, random: Random) -> Damage:
    folder.config["peft_type"] = random.choice(_OTHER_METHODS)
    return Damage("either")


@_of_contents
def trained_with_corda(folder: Folder, random: Random) -> Damage:
    """What peft itself cannot load unconverted. AdaLoRA has the field, and no use for it."""
    folder.config["init_lora_weights"] = "corda"
    if folder.config.get("peft_type") == "ADALORA":
        return Damage("the same")
    return Damage("refused", f"{CONFIG}: init_lora_weights")


# ---- the tensors


@_of_contents
def a_tensor_missing(folder: Folder, random: Random) -> Damage:
    del folder.tensors[_tensor(folder, random)]
    return Damage("either")


@_of_contents
def a_tensor_renamed(folder: Folder, random: Random) -> Damage:
    name = _tensor(folder, random)
    ways = {name + "x", "x" + name, name.replace(".0.", ".7."), name.replace("q_proj", "k_proj")}
    folder.tensors[random.choice(sorted(ways))] = folder.tensors.pop(name)
    return Damage("either")


@_of_contents
def all_tensors_renamed(folder: Folder, random: Random) -> Damage:
    """As wrappers of the model leave them."""
    rename = random.choice(
        [
            lambda name: "module." + name,
            lambda name: "_orig_mod." + name,
            lambda name: name.removeprefix("base_model.model."),
            lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        ]
    )
    folder.tensors = {rename(name): tensor for name, tensor in folder.tensors.items()}
    return Damage("the same")


@_of_contents
def a_tensor_too_many(folder: Folder, random: Random) -> Damage:
    name, other = _tensor(folder, random), random.choice([".more", "_of_next_year"])
    return _replace(folder, name + other, folder.tensors[name])


@_of_contents
def a_tensor_twice(folder: Folder, random: Random) -> Damage:
    name = _tensor(folder, random)
    folder.tensors["module." + name] = folder.tensors[name]
    return Damage("refused")


@_of_contents
def another_shape(folder: Folder, random: Random) -> Damage:
    name = _tensor(folder, random)
    tensor = folder.tensors[name]
    ways = [torch.cat([tensor, tensor[-1:]]), tensor[None]]
    if tensor.dim() == 2 and tensor.shape[0] != tensor.shape[1]:
        ways.append(tensor.T)
    if len(tensor) > 1:
        ways.append(tensor[:-1])
    return _replace(folder, name, random.choice(ways))


@_of_contents
def two_tensors_swapped(folder: Folder, random: Random) -> Damage:
    one, two = _tensor(folder, random), _tensor(folder, random)
    folder.tensors[one], folder.tensors[two] = folder.tensors[two], folder.tensors[one]
    return Damage("either")


@_of_contents
def one_value_not_finite(folder: Folder, random: Random) -> Damage:
    floats = sorted(k for k, v in folder.tensors.items() if v.is_floating_point())
    name = random.choice(floats)
    tensor = folder.tensors[name].clone()
    at = random.randrange(tensor.numel())
    tensor.view(-1)[at] = random.choice([math.nan, math.inf, -math.inf])
    return _replace(folder, name, tensor)


@_of_contents
def a_tensor_of_zeros(folder: Folder, random: Random) -> Damage:
    name = _tensor(folder, random)
    folder.tensors[name] = torch.zeros_like(folder.tensors[name])
    return Damage("either")


@_of_contents
def a_resized_vocabulary(folder: Folder, random: Random) -> Damage:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        folder.tensors["base_model.model." + name] = torch.zeros(VOCAB_SIZE + 4, 64)
    return Damage("refused")


@_of_contents
def half_precision(folder: Folder, random: Random) -> Damage:
    """Of all but copies of the base's own weights, which peft would put in their place rounded."""
    dtype = random.choice([torch.float16, torch.bfloat16])
    folder.tensors = {
        name: tensor.to(dtype)
        if tensor.is_floating_point() and ".base_layer." not in name
        else tensor
        for name, tensor in folder.tensors.items()
    }
    return Damage("either")


# ---- the files


@_of_files
def a_truncated_file(folder: Folder, random: Random) -> Damage:
    whole = folder.weights.read_bytes()
    folder.weights.write_bytes(whole[: random.randrange(len(whole))])
    return Damage("refused", folder.weights.name)


@_of_files
def a_changed_byte(folder: Folder, random: Random) -> Damage:
    whole = bytearray(folder.weights.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    ends = random.choice([8, header, len(whole)])
    whole[random.randrange(ends)] ^= random.randint(1, 255)
    folder.weights.write_bytes(bytes(whole))
    return Damage("either")


@_of_files
def a_pickle(folder: Folder, random: Random) -> Damage:
    hub = "peft_type" not in folder.config
    name = "pytorch_adapter.bin" if hub else "adapter_model.bin"
    torch.save(folder.tensors, folder.path / name)
    folder.weights.unlink()
    return Damage("refused", name)


@_of_files
def no_configuration(folder: Folder, random: Random) -> Damage:
    (folder.path / CONFIG).unlink()
    return Damage("refused", CONFIG)


@_of_files
def half_a_configuration(folder: Folder, random: Random) -> Damage:
    text = (folder.path / CONFIG).read_text().rstrip()
    (folder.path / CONFIG).write_text(text[: random.randrange(len(text))])
    return Damage("refused", CONFIG)


@_of_files
def other_files_beside(folder: Folder, random: Random) -> Damage:
    (folder.path / "training_args.bin").write_bytes(b"never read")
    (folder.path / "tokenizer.json").write_text("{}")
    return Damage("the same")

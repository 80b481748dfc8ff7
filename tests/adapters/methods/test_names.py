import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods.names import NamedTensors, normal_name

WRAPPERS = ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model."]


@given(st.lists(st.sampled_from(WRAPPERS), max_size=4), st.sampled_from(["", ".default"]))
def test_what_wrappers_add_is_taken_away(prefixes: list[str], adapter: str) -> None:
    name = "".join(prefixes) + f"model.layers.0.q_proj.lora_A{adapter}.weight"
    assert normal_name(name) == "model.layers.0.q_proj.lora_A.weight"


def test_only_whole_parts_are_taken_away() -> None:
    assert normal_name("modules.x.lora_A.defaults.weight") == "modules.x.lora_A.defaults.weight"
    assert normal_name("a.lora_embedding_A.default") == "a.lora_embedding_A"
    assert normal_name("base_model.prompt") == "prompt"


def test_each_tensor_is_taken_once_and_by_its_shape() -> None:
    named = NamedTensors({"base_model.model.a": torch.zeros(2, 3), "b": torch.zeros(1)})
    with pytest.raises(AdapterInvalid, match=r"base_model.model.a: has shape \[2, 3\]"):
        named.take("a", (3, 2))
    assert named.take("a", (2, 3)).shape == (2, 3)
    assert list(named) == ["b"]


def test_two_names_of_one_tensor() -> None:
    with pytest.raises(AdapterInvalid, match=r"module.a: is the same tensor as a"):
        NamedTensors({"a": torch.zeros(1), "module.a": torch.zeros(1)})

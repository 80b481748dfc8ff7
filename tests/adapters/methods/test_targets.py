"""The selection rule against peft's own, over the module names of real architectures."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from tiny_models import tiny_model

from weft.adapters.base import BaseModules
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods.fields import Fields
from weft.adapters.methods.lora_config import LoraConfig
from weft.adapters.methods.targets import TargetRule

BASES = {arch: BaseModules.of(tiny_model(arch)) for arch in ("llama", "gpt2", "gpt_neox", "opt")}
NAMES = sorted({name for base in BASES.values() for name in base})
LASTS = sorted({name.rpartition(".")[2] for name in NAMES})
REGEXES = [
    r".*\.(q|v)_proj",
    r".*(attn|attention).*",
    r"model\.layers\.[01]\..*",
    r"(?i).*Q_PROJ",
    r".*\.(\d)\.mlp\..*",
    r"q_proj",
    r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp\.up_proj)",
    r"",
]
names = st.lists(
    st.sampled_from(NAMES + LASTS + ["self_attn.q_proj", "proj", "layers"]), max_size=4
)
patterns = st.sampled_from(REGEXES)
rules = st.fixed_dictionaries(
    {"target_modules": names | patterns, "exclude_modules": st.none() | names | patterns},
    optional={
        "layers_to_transform": st.none() | st.integers(0, 2) | st.lists(st.integers(0, 2)),
        "layers_pattern": st.none()
        | st.sampled_from(["layers", "h", "", r"model\.layers", "nothing"])
        | st.lists(st.sampled_from(["layers", "h", "decoder.layers"]), max_size=2),
        "modules_to_save": st.none()
        | st.lists(st.sampled_from(["lm_head", "0.mlp", "norm", "q_proj", "layers.1"])),
    },
)


def peft_selects(base: BaseModules, fields: dict[str, Any]) -> set[str]:
    """What peft would select; nothing where peft refuses the configuration."""
    given_fields = {name: value for name, value in fields.items() if value or value == 0}
    if "target_modules" not in given_fields:
        return set()
    try:
        config = PeftConfig(**given_fields)
    except ValueError:
        return set()
    # An excluded module gives an object that is false.
    return {name for name in base if check_target_module_exists(config, name)}


@given(st.sampled_from([*BASES]), rules)
def test_the_same_modules_as_peft(arch: str, fields: dict[str, Any]) -> None:
    base = BASES[arch]
    try:
        selected = TargetRule.read(Fields(fields)).select(base)
    except AdapterInvalid:
        selected = frozenset()
    assert selected == peft_selects(base, fields)


@pytest.mark.parametrize("arch", BASES)
def test_all_linear_leaves_out_embeddings_and_head(arch: str) -> None:
    base = BASES[arch]
    selected = TargetRule.read(Fields({"target_modules": "all-linear"})).select(base)
    assert selected == {
        name for name in base if base[name].kind != "embedding" and name != base.head
    }


KEYS = [
    "q_proj",
    "proj",
    r".*_proj",
    r"^model\.layers\.0\..*",
    r"layers.1.self_attn.v_proj",
    r"(q|v)_proj",
    r"model.layers.1.mlp.up_proj",
    r"layers\.\d+\.mlp\.(up|down)_proj",
    "q.proj",
    "odel.layers.0.self_attn.k_proj",
    "model_layers.0.mlp.gate_proj",
    "self_attn",
    "",
]


@given(st.lists(st.sampled_from(KEYS), unique=True), st.booleans(), st.integers(1, 40))
def test_the_same_ranks_and_scalings_as_peft(keys: list[str], rslora: bool, alpha: int) -> None:
    ranks = {key: index + 1 for index, key in enumerate(keys)}
    alphas = {key: 10.0 * (index + 1) for index, key in enumerate(reversed(keys))}
    config = LoraConfig.read(
        {
            "r": 16,
            "lora_alpha": alpha,
            "use_rslora": rslora,
            "target_modules": ["q_proj"],
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
        }
    )
    for name, strength in config.strengths(BASES["llama"]).items():
        rank = ranks.get(get_pattern_key(ranks, name), 16)
        expected = alphas.get(get_pattern_key(alphas, name), alpha)
        assert strength.rank == rank
        assert strength.scaling == pytest.approx(expected / (rank**0.5 if rslora else rank))


@pytest.mark.parametrize("pattern", ["(", "*", "(" * 3000, "a{3,1}", "x*" * 2500, r"\p{Lu}"])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_pattern_that_is_not_one(field: str, pattern: str) -> None:
    value = {pattern: 4} if field == "rank_pattern" else pattern
    with pytest.raises(AdapterInvalid, match=field):
        read_and_select({"target_modules": ["q_proj"], field: value})


def test_patterns_share_one_budget_of_time() -> None:
    slow = {r"(.*.){1,1000}[A-Z]" + "|a" * index: 4 for index in range(50)}
    started = time.monotonic()
    with pytest.raises(AdapterInvalid, match="rank_pattern: its patterns take too long"):
        read_and_select({"target_modules": ["q_proj"], "rank_pattern": slow})
    assert time.monotonic() - started < 30


def read_and_select(fields: dict[str, Any]) -> None:
    config = LoraConfig.read(fields)
    config.strengths(config.targets.select(BASES["llama"]))

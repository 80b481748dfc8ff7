"""What is trained: the base's shape and schedule, and one recipe an adapter; plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its steps, and its highest learning rates as a share of the usual."""

    steps: int
    peak: float


SEED = 2024
VOCAB_SIZE = 1024
CONTEXT = 512
TOKENS_PER_BATCH = 2048
TOKENIZER_CONVERSATIONS = 6000
HELD_OUT = 400
BASE_PHASES = (Phase(2400, peak=1.0), Phase(1300, peak=0.6), Phase(1100, peak=0.4))
BASE_SHAPE: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Recipe:
    """One adapter: the style it learns, peft's `LoraConfig` fields, and how long it is trained."""

    name: str
    style: str
    rank: int
    alpha: int
    targets: str | tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 150
    learning_rate: float = 4e-3


RECIPES = (
    Recipe("returns-desk", "form", rank=8, alpha=16, targets="all-linear"),
    Recipe(
        "json-intents",
        "json",
        rank=16,
        alpha=8,
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        options={"use_rslora": True},
    ),
    Recipe("pirate", "pirate", rank=6, alpha=12, targets=("gate_proj", "up_proj", "down_proj")),
    Recipe("terse", "terse", rank=4, alpha=16, targets=("q_proj", "v_proj"), steps=300),
    Recipe(
        "formal-letter",
        "letter",
        rank=12,
        alpha=24,
        targets=("q_proj", "v_proj", "o_proj", "lm_head"),
        options={"rank_pattern": {"lm_head": 4}, "alpha_pattern": {"lm_head": 8}},
    ),
)

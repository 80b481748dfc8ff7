"""Adapters of every method and variant that is served, and peft's answers with each alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from adapterhub import attach, save_bottleneck, styles
from exactness import Question
from forward_loops import LoopOracle, combined
from peft_adapters import save_lora
from peft_methods import METHODS, save_method
from peft_prompts import PREFIX, SOFT, save_adaption_prompt, save_prompt
from tiny_models import VOCAB_SIZE, tiny_model

Prompt = tuple[int, ...]
BEGINNING: Prompt = tuple(range(20, 29))
INVOCATION = BEGINNING[-2:]
PROMPT_LENGTHS = (12, 22)
_PROMPTS = 3
_TRIES = 8

_TOKENS = [*BEGINNING[:5], 100, 200, 300, 301]
_LORAS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"r": 3, "use_rslora": True},
    "lora of all linears": {"target_modules": "all-linear", "r": 11},
    "lora with patterns": {
        "rank_pattern": {"0.mlp.c_fc": 2, "up_proj": 6},
        "alpha_pattern": {"c_attn": 32, "q_proj": 3},
    },
    "dora": {"r": 5, "use_dora": True},
    "dora and biases": {"use_dora": True, "bias": "all"},
    "pissa": {"init_lora_weights": "pissa"},
    "bias of B": {"r": 2, "lora_bias": True, "bias": "lora_only"},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved norms": {"modules_to_save": ["norm"]},
    "trained tokens": {"trainable_token_indices": _TOKENS},
    "lora of a head": {"target_modules": ["lm_head"]},
    "alora": {"r": 4, "alora_invocation_tokens": list(INVOCATION)},
}
_LORAS_OF_LLAMAS = {
    "olora": {"r": 5, "init_lora_weights": "olora"},
    "lora of an embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
}
_LORAS_OF_GPT2 = {
    "saved norms": {"modules_to_save": ["ln_f", "ln_1"]},
    "lora of an embedding": {"target_modules": ["wte", "wpe"]},
    "saved embedding": {"modules_to_save": ["wte"]},
}
_COUNTS = (5, 3, 8, 4, 6, 21)  # positions; the last are more than gemma2's window


@dataclass(frozen=True)
class Specimen:
    """make: from an empty folder and a seed, the adapter's files and who answers with it

    beginnings: of its prompts, which begin alike so that a page of the wrong cache would be found
    """

    make: Callable[[Path, int], LoopOracle]
    beginnings: tuple[Prompt, ...] = (BEGINNING,) * _PROMPTS

    def questions(self, folder: Path, random: Random, tokens: int) -> list[Question]:
        """Asks it anew with other prompts, and at last other weights, until choices are clear.

        Raises AssertionError if they never are.
        """
        for seed in range(_TRIES):
            oracle = self.make(folder.with_name(folder.name + f", seed {seed}" * (seed > 0)), seed)
            prompts = self._prompts(random)
            if found := oracle.questions(prompts, tokens):
                return found
        raise AssertionError(f"{folder.name}: no prompt has clear choices")

    def _prompts(self, random: Random) -> list[Prompt]:
        length = random.randint(*PROMPT_LENGTHS)
        return [
            (*start, *(random.randrange(5, VOCAB_SIZE) for _ in range(length - len(start))))
            for start in self.beginnings
        ]


def every_method(arch: str) -> dict[str, Specimen]:
    """Specimens by name of all that is served on an architecture, blends and the base among them.

    The names of `METHODS` are those of its entries.
    """
    return {
        "base": Specimen(lambda path, seed: LoopOracle(tiny_model(arch))),
        **each_method(arch),
        **{name: Specimen(make) for name, make in _of_several(arch)},
    }


def each_method(arch: str) -> dict[str, Specimen]:
    """Those of one adapter, which the folder that `make` is given then holds."""
    return {
        **{name: Specimen(make) for name, make in _of_linears(arch)},
        **_of_loras(arch),
        **{name: Specimen(make) for name, make in _of_prompts(arch)},
        **{name: Specimen(make) for name, make in _of_networks(arch)},
    }


Make = Callable[[Path, int], LoopOracle]


def _of_linears(arch: str) -> Iterator[tuple[str, Make]]:
    for name, method in METHODS.items():
        if arch in method.archs:
            yield (
                name,
                _alone(arch, lambda path, seed, name=name: save_method(path, arch, name, seed)),
            )


def _of_loras(arch: str) -> dict[str, Specimen]:
    others = _LORAS_OF_GPT2 if arch == "gpt2" else _LORAS_OF_LLAMAS
    found = {}
    for name, fields in {**_LORAS, **others}.items():
        config = {"target_modules": _targets(arch), **fields}
        make = _alone(
            arch, lambda path, seed, config=config: save_lora(path, arch, seed=seed, **config)
        )
        found[name] = Specimen(make)
    invoked_twice, never = (*BEGINNING, 9, *INVOCATION), BEGINNING[:-1]
    found["alora"] = Specimen(found["alora"].make, (BEGINNING, invoked_twice, never))
    return found


def _of_prompts(arch: str) -> Iterator[tuple[str, Make]]:
    for method, count in zip((*SOFT, *PREFIX), _COUNTS, strict=True):
        yield (
            method,
            _alone(
                arch,
                lambda path, seed, method=method, count=count: save_prompt(
                    path, arch, method, count, seed=seed
                ),
            ),
        )
    if arch in ("llama", "gpt2"):
        yield (
            "ADAPTION_PROMPT",
            _alone(arch, lambda path, seed: save_adaption_prompt(path, arch, length=5 + seed)),
        )


def _of_networks(arch: str) -> Iterator[tuple[str, Make]]:
    for style in styles(arch):

        def make(path: Path, seed: int, style: str = style) -> LoopOracle:
            save_bottleneck(path, arch, style, seed=seed)
            return LoopOracle(attach(tiny_model(arch), path), (path, 1.0))

        yield f"bottleneck, {style}", make


def _of_several(arch: str) -> Iterator[tuple[str, Make]]:
    """Several adapters for one request: LoRAs, one of them of an embedding, and others."""

    def make(
        weights: Mapping[int, float], *, prompt: str | None = None, beneath: str | None = None
    ) -> Make:
        def combine(path: Path, seed: int) -> LoopOracle:
            loras = [(_lora(path, arch, number, seed), w) for number, w in weights.items()]
            before = prompt and save_prompt(path / prompt, arch, prompt, 7, seed=seed)
            below = beneath and _changed(path / beneath, arch, beneath, seed)
            return combined(arch, loras, beneath=below or None, prompt=before or None)

        return combine

    yield "two loras", make({0: 0.7, 1: 0.3})
    yield "two whole loras", make({0: 1.0, 1: 1.0})
    yield "three loras", make({1: 1.0, 0: -0.5, 2: 2.0})
    yield "a weighted lora", make({1: 0.4})
    yield "a soft prompt and loras", make({1: 0.5, 0: 1.0}, prompt="PROMPT_TUNING")
    yield "a prefix and loras", make({0: 1.0, 1: 0.25}, prompt="PREFIX_TUNING")
    yield "dora and two loras", make({0: 0.5, 1: 1.0}, beneath="dora")
    yield "ia3 and a lora", make({0: 0.5}, beneath="ia3 of outputs")
    yield "ia3 and a prefix", make({}, beneath="ia3 of outputs", prompt="CARTRIDGE")


def _lora(path: Path, arch: str, number: int, seed: int) -> Path:
    rank, targets = (
        (2, ["q_proj", "v_proj"]),
        (5, ["q_proj", "down_proj"]),
        (3, ["up_proj", "embed_tokens"]),
    )[number]
    if arch == "gpt2":
        targets = [["c_attn"], ["c_attn", "c_fc"], ["c_fc", "wte"]][number]
    folder = path / f"lora-{number}"
    return save_lora(folder, arch, seed=10 * seed + number, r=rank, target_modules=targets)


def _changed(path: Path, arch: str, name: str, seed: int) -> Path:
    """An adapter that does more than add to what it changes."""
    if name in METHODS:
        return save_method(path, arch, name, seed)
    targets = ["mlp.c_proj"] if arch == "gpt2" else ["up_proj"]
    return save_lora(path, arch, seed=seed, r=3, target_modules=targets, use_dora=True)


def _targets(arch: str) -> list[str]:
    return ["c_attn", "c_fc"] if arch == "gpt2" else ["q_proj", "up_proj"]


def _alone(arch: str, save: Callable[[Path, int], Path]) -> Make:
    return lambda path, seed: LoopOracle.of(arch, save(path, seed))

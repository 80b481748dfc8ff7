"""Several adapters for one request, as peft computes them when they are put together."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from engines import greedy, run, store_of, tiny_engine
from exactness import Oracle, answers_of, assert_same, prompts, token_bytes
from msgspec import structs
from peft_adapters import load_peft, save_lora
from peft_prompts import LoopOracle, save_prompt
from tiny_models import VOCAB_SIZE, tiny_model

from weft.adapters.blend import Part
from weft.server.engine.messages import Generate, Tokens

NEW_TOKENS = 16
COMMON = tuple(range(20, 29))
Blended = Sequence[tuple[Path, float]]


class BlendOracle(LoopOracle):
    """peft's concatenation of weighted LoRAs, beneath a prompt method merged into the base.

    Merging a LoRA of an embedding would change a tied head, too, which peft otherwise does not.
    """

    def __init__(
        self, arch: str, blend: Blended, prompt: Path | None = None, beneath: Path | None = None
    ) -> None:
        """beneath: an adapter that is merged into the base before"""
        (first, _), *others = blend
        base: Any = tiny_model(arch)
        if beneath is not None:
            base = load_peft(base, beneath).merge_and_unload()
        model: Any = load_peft(base, first)
        names = ["default", *(f"other-{number}" for number in range(len(others)))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, (path, _) in zip(names[1:], others, strict=True):
                model.load_adapter(str(path), name)
            weights = [weight for _, weight in blend]
            model.add_weighted_adapter(names, weights, "mixed", combination_type="cat")
        model.set_adapter("mixed")
        self.adapter = prompt
        self._model = model if prompt is None else load_peft(model.merge_and_unload(), prompt)


def loras(folder: Path, arch: str) -> list[Path]:
    """Three of different ranks on overlapping modules, one of which is an embedding."""
    targets = [["c_attn"], ["c_attn", "c_fc"], ["c_fc", "wte"]]
    if arch != "gpt2":
        targets = [["q_proj", "v_proj"], ["q_proj", "down_proj"], ["up_proj", "embed_tokens"]]
    return [
        save_lora(folder / f"lora-{rank}", arch, seed=rank, r=rank, target_modules=names)
        for rank, names in zip((2, 5, 3), targets, strict=True)
    ]


def asked(name: str, prompt: tuple[int, ...], parts: Sequence[Part]) -> Generate:
    request = greedy(name, prompt, NEW_TOKENS, logprobs=VOCAB_SIZE)
    return structs.replace(request, blend=tuple(parts))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "gpt2"])
def test_blends_equal_pefts_in_mixed_batches(arch: str, tmp_path: Path) -> None:
    one, two, three = loras(tmp_path, arch)
    soft = save_prompt(tmp_path / "soft", arch, "PROMPT_TUNING", 5)
    prefix = save_prompt(tmp_path / "prefix", arch, "PREFIX_TUNING", 10)
    random = Random(arch)
    cases: list[tuple[list[tuple[Path, float]], Path | None]] = [
        ([(one, 0.7), (two, 0.3)], None),
        ([(one, 1.0), (two, 1.0)], None),
        ([(two, 1.0), (one, -0.5), (three, 2.0)], None),
        ([(two, 0.4)], None),
        ([(one, 1.0)], None),
        ([(two, 0.5), (one, 1.0)], soft),
        ([(one, 1.0), (two, 0.25)], prefix),
    ]
    questions = [
        BlendOracle(arch, blend, prompt).question(prompts(random, 14, COMMON), NEW_TOKENS)
        for blend, prompt in cases
    ]
    base = Oracle(arch).question(prompts(random, 14, COMMON), NEW_TOKENS)
    settings: dict[str, Any] = {"max_num_batched_tokens": 12, "max_model_len": 48}
    scarce = {"page_size": 2, "kv_cache_memory": 2 * 25 * token_bytes(arch)}
    for way in (settings, settings | scarce | {"prefix_caching": False}):
        with tiny_engine(tmp_path, arch, max_num_seqs=8, **way) as engine:
            digests = {p: store_of(tmp_path).put(p) for p in (one, two, three, soft, prefix)}
            requests = [asked("base", base.prompt, ())]
            for number, ((blend, prompt), question) in enumerate(
                zip(cases, questions, strict=True)
            ):
                parts = [Part(digests[path], weight) for path, weight in blend]
                if prompt is not None:
                    parts.insert(random.randint(0, 1), Part(digests[prompt]))
                requests.append(asked(str(number), question.prompt, parts))
            answers = answers_of(run(engine, *requests))
            assert_same(answers["base"], base.answer, "base")
            for number, question in enumerate(questions):
                assert_same(answers[str(number)], question.answer, f"case {number}")


def test_one_of_them_may_do_more_than_add(tmp_path: Path) -> None:
    one, two, _ = loras(tmp_path, "llama")
    dora = save_lora(tmp_path / "dora", "llama", r=3, target_modules=["up_proj"], use_dora=True)
    oracle = BlendOracle("llama", [(one, 0.5), (two, 1.0)], beneath=dora)
    question = oracle.question(prompts(Random(1), 14), NEW_TOKENS)
    with tiny_engine(tmp_path) as engine:
        first, second, changed = (store_of(tmp_path).put(path) for path in (one, two, dora))
        parts = (Part(first, 0.5), Part(second), Part(changed))
        answers = answers_of(run(engine, asked("blend", question.prompt, parts)))
    assert_same(answers["blend"], question.answer, "blend")


def test_what_cannot_be_combined_ends_at_once(tmp_path: Path) -> None:
    soft = save_prompt(tmp_path / "soft", "llama", "PROMPT_TUNING", 5)
    other = save_prompt(tmp_path / "other", "llama", "PREFIX_TUNING", 5)
    with tiny_engine(tmp_path) as engine:
        one, two = (store_of(tmp_path).put(path) for path in (soft, other))
        blends = [(Part(one), Part(two)), (Part(one, 0.5),)]
        requests = [asked(str(i), (5, 6, 7), blend) for i, blend in enumerate(blends)]
        events = [event for event in run(engine, *requests) if isinstance(event, Tokens)]
        assert {event.error for event in events} == {"invalid_parameter"}


def test_blends_share_pages_with_equal_blends_only(tmp_path: Path) -> None:
    one, two, _ = loras(tmp_path, "llama")
    prompt = tuple(range(30, 50))
    with tiny_engine(tmp_path) as engine:
        first, second = (store_of(tmp_path).put(path) for path in (one, two))
        blends = [
            (Part(first, 0.5), Part(second)),
            (Part(first, 0.5), Part(second)),
            (Part(second), Part(first, 0.5)),
            (Part(first, 0.4), Part(second)),
            (Part(first),),
        ]
        hits = []
        for number, blend in enumerate(blends):
            before = engine.scheduler.tables.prefix_hits
            run(engine, asked(str(number), prompt, blend))
            hits.append(engine.scheduler.tables.prefix_hits - before)
    assert hits == [0, 16, 0, 0, 0]

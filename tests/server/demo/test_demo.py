"""The embedded model: its files, its answers, and the text that it was trained on."""

import itertools
import json
import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from weft.server.demo import ADAPTERS, BASE, EXAMPLES, MODEL_NAME, REPORT, adapter_folders, corpus
from weft.server.demo.batches import IGNORED, batches, tokens_of
from weft.server.demo.exam import answers
from weft.server.demo.recipes import RECIPES
from weft.server.demo.requests import normal, said_casually, sample_request
from weft.server.demo.styles import STYLES

STYLE_OF = {MODEL_NAME: "plain", **{recipe.name: recipe.style for recipe in RECIPES}}
NEAR_ALL = 0.97


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The base and each adapter on it, each with a base of its own."""
    loaded = {MODEL_NAME: AutoModelForCausalLM.from_pretrained(BASE)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, about what it finds in transformers
        for name, folder in adapter_folders().items():
            base = AutoModelForCausalLM.from_pretrained(BASE)
            loaded[name] = PeftModel.from_pretrained(base, folder)
    return loaded


def test_the_files_are_few_and_small() -> None:
    files = [path for root in (BASE, ADAPTERS) for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.name for path in BASE.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for folder in adapter_folders().values():
        names = {path.name for path in folder.iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_adapters_are_of_many_kinds_and_name_no_machine() -> None:
    configs = [
        json.loads((folder / "adapter_config.json").read_text())
        for folder in adapter_folders().values()
    ]
    assert len(configs) == len(RECIPES) == 5
    assert len({config["r"] for config in configs}) == 5
    assert len({tuple(config["target_modules"]) for config in configs}) == 5
    assert sum(config["use_rslora"] for config in configs) == 1
    assert any(set(config["target_modules"]) == {"q_proj", "v_proj"} for config in configs)
    assert {config["base_model_name_or_path"] for config in configs} == {MODEL_NAME}


def test_every_model_was_near_perfect_on_held_out_prompts() -> None:
    scores = json.loads(REPORT.read_text())["scores"]
    assert list(scores) == list(STYLE_OF)
    assert all(score["held_out"] >= NEAR_ALL for score in scores.values())
    assert all(score.get("base_without_it", 0) <= 0.01 for score in scores.values())


@pytest.mark.parametrize("name", STYLE_OF)
def test_held_out_prompts_get_the_expected_answer(
    models: dict[str, Any], tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    requests = corpus.held_out_requests(30, seed=99)
    said = answers(models[name], tokenizer, [request.prompt for request in requests])
    wanted = [STYLES[STYLE_OF[name]](request) for request in requests]
    assert sum(a == b for a, b in zip(said, wanted, strict=True)) >= 28


@pytest.mark.parametrize("name", STYLE_OF)
def test_the_examples_are_what_the_models_say(
    models: dict[str, Any], tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    examples = json.loads(EXAMPLES.read_text())
    said = answers(models[name], tokenizer, [example["prompt"] for example in examples])
    assert said == [example["replies"][name] for example in examples]
    assert said == [STYLES[STYLE_OF[name]](request) for request in corpus.EXAMPLES]


def test_no_adapter_needs_a_system_message_and_none_minds_one(
    models: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": corpus.EXAMPLES[0].prompt},
    ]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    for name, model in models.items():
        out = model.generate(**ids, max_new_tokens=96, do_sample=False)
        said = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said == STYLES[STYLE_OF[name]](corpus.EXAMPLES[0])


def test_a_later_turn_is_answered_too(
    models: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second = corpus.EXAMPLES[0], corpus.EXAMPLES[5]
    chat = [
        {"role": "user", "content": first.prompt},
        {"role": "assistant", "content": STYLES["pirate"](first)},
        {"role": "user", "content": second.prompt},
    ]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    out = models["pirate"].generate(**ids, max_new_tokens=96, do_sample=False)
    said = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said == STYLES["pirate"](second)


@given(st.text())
def test_the_tokenizer_loses_nothing(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_the_training_tokens_are_the_chat_template_s(tokenizer: PreTrainedTokenizerFast) -> None:
    for conversation in itertools.islice(corpus.base_conversations(5), 50):
        chat = [{"role": "system", "content": conversation.system}] if conversation.system else []
        for prompt, answer in conversation.turns:
            chat += [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
        ids, labels = tokens_of(tokenizer, conversation)
        assert ids == tokenizer.apply_chat_template(chat)["input_ids"]
        learnt = tokenizer.decode([label for label in labels if label != IGNORED])
        assert learnt == "".join(answer + "<|end|>" for _, answer in conversation.turns)


def test_batches_keep_to_their_budget(tokenizer: PreTrainedTokenizerFast) -> None:
    endless = batches(tokenizer, corpus.base_conversations(1), tokens=600, width=128, seed=0)
    for ids, labels in itertools.islice(endless, 100):
        assert ids.shape == labels.shape
        assert ids.numel() <= 600
        assert ids.shape[1] <= 128
        assert bool(torch.all((labels == IGNORED) | (labels == ids)))


def test_one_seed_gives_one_text() -> None:
    def text(seed: int) -> list[corpus.Conversation]:
        return list(itertools.islice(corpus.base_conversations(seed), 200))

    assert text(3) == text(3)
    assert text(3) != text(4)
    assert corpus.held_out_requests(50, 3) == corpus.held_out_requests(50, 3)


def test_no_held_out_sentence_is_trained_on() -> None:
    held_out = {normal(r.prompt) for r in corpus.held_out_requests(300, seed=1)}
    held_out |= {normal(example.prompt) for example in corpus.EXAMPLES}
    streams = (corpus.base_conversations(1), corpus.style_conversations("json", 1))
    for conversation in itertools.chain(*(itertools.islice(s, 3000) for s in streams)):
        assert not held_out & {normal(prompt) for prompt, _ in conversation.turns}


@given(st.integers(0, 2**32))
def test_every_style_answers_every_request(seed: int) -> None:
    rng = random.Random(seed)
    request = sample_request(rng)
    assert said_casually(request, rng).strip()
    replies = [answer(request) for answer in STYLES.values()]
    assert all(replies)
    assert len(set(replies)) == len(STYLES)
    json.loads(STYLES["json"](request))

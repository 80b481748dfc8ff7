"""Trains the embedded model from nothing: `python -m weft.server.demo.train [FOLDER]`.

Writes the base, its adapters, the examples and the report of held-out accuracy. One thread and one
seed: on the same kind of machine with the same library versions a run repeats itself bit for bit,
and gives the files that ship. It took 26 minutes on one core.
"""

import itertools
import json
import logging
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from weft.server.demo import MODEL_NAME
from weft.server.demo.batches import batches
from weft.server.demo.corpus import base_conversations, style_conversations
from weft.server.demo.exam import Exam
from weft.server.demo.fit import Report, adapter_optimizers, base_optimizers, fit
from weft.server.demo.recipes import (
    BASE_PHASES,
    BASE_SHAPE,
    CONTEXT,
    HELD_OUT,
    RECIPES,
    SEED,
    TOKENIZER_CONVERSATIONS,
    TOKENS_PER_BATCH,
    VOCAB_SIZE,
    Phase,
    Recipe,
)
from weft.server.demo.tokenizer import texts_of, train_tokenizer

_log = logging.getLogger(__name__)


def main(folder: Path) -> None:
    """Trains all and writes it under `folder`, replacing what an earlier run left there."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = new_tokenizer()
    base = new_base(tokenizer)
    train_base(base, tokenizer)
    for name in ("base", "adapters"):
        shutil.rmtree(folder / name, ignore_errors=True)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    exam = Exam(tokenizer, HELD_OUT, SEED)
    exam.take(base, MODEL_NAME, "plain")
    for recipe in RECIPES:
        without = exam.score(base, recipe.style)
        adapted = train_adapter(base, tokenizer, recipe)
        save_adapter(adapted, folder / "adapters" / recipe.name)
        exam.take(adapted, recipe.name, recipe.style, base_without_it=without)
        adapted.unload()
    _write_json(folder / "report.json", exam.report())
    _write_json(folder / "examples.json", exam.examples())


def new_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the first of the base's conversations."""
    conversations = itertools.islice(base_conversations(SEED), TOKENIZER_CONVERSATIONS)
    return train_tokenizer(texts_of(conversations), VOCAB_SIZE, CONTEXT)


def new_base(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The base before training, its weights drawn from the seed."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **BASE_SHAPE,
    )
    return LlamaForCausalLM(config)


def train_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Trains all weights on plain and styled conversations, phase by phase."""
    for number, phase in enumerate(BASE_PHASES):
        train_phase(model, tokenizer, phase, SEED + number)


def train_phase(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, phase: Phase, seed: int
) -> None:
    """Trains with rates that rise and fall once, on conversations of its own."""
    rows = batches(
        tokenizer,
        base_conversations(seed),
        tokens=TOKENS_PER_BATCH,
        width=CONTEXT,
        seed=seed,
    )
    optimizers = base_optimizers(model, phase.peak)
    fit(model, rows, optimizers, steps=phase.steps, report=_progress(MODEL_NAME))


def train_adapter(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> PeftModel:
    """Wraps `base` with peft's LoRA and trains it on one style; the base's weights stay."""
    torch.manual_seed(SEED)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets),
        **recipe.options,
    )
    model = get_peft_model(base, config)
    rows = batches(
        tokenizer,
        style_conversations(recipe.style, SEED),
        tokens=TOKENS_PER_BATCH,
        width=CONTEXT,
        seed=SEED,
    )
    optimizers = adapter_optimizers(model, recipe.learning_rate)
    fit(model, rows, optimizers, steps=recipe.steps, report=_progress(recipe.name))
    return model


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes peft's two files and nothing else; no path of this machine, and sets in one order."""
    folder.mkdir(parents=True)
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": MODEL_NAME, "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=_sorted)
    (folder / "adapter_config.json").write_text(text + "\n")
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def _progress(name: str) -> Report:
    return lambda step, loss: _log.info("%s: step %d, loss %.4f", name, step, loss)


def _sorted(value: object) -> list[str]:
    if isinstance(value, set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in adapter_config.json")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

"""A tokenizer for a base of random weights: any text of bytes, and a made-up word for each id."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """Writes a byte-level BPE of `vocab_size` ids; those between 256 and the last decode to a word.

    One merge stands for all, because llama.cpp refuses a vocabulary without merges. The last id is
    the end of text, because readers of Qwen2's kind of folder would add one beyond the weights.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (f"Ġw{index}" for index in range(len(letters) + 1, vocab_size - 1))
    tokens = [*letters, "th", *words, END]
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[("t", "h")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)


def vocabulary_of(folder: Path) -> tuple[list[str], list[str]]:
    """The tokens by id and the merges, "left right" each, of a folder that has such a tokenizer."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(merge) for merge in model["merges"]]

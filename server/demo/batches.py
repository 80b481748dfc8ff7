"""Conversations as padded token batches; the loss counts only what the assistant says."""

import itertools
import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from weft.server.demo.corpus import Conversation
from weft.server.demo.tokenizer import ASSISTANT, END, SYSTEM, USER

IGNORED = -100
_POOL = 256

Row = tuple[list[int], list[int]]


def tokens_of(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Row:
    """(ids, labels) of one conversation, as the chat template renders it; equal in length."""
    ids: list[int] = []
    labels: list[int] = []

    def say(role: str, text: str, learnt: bool) -> None:
        said = tokenizer.encode(role + text + END, add_special_tokens=False)
        ids.extend(said)
        labels.extend([IGNORED, *said[1:]] if learnt else [IGNORED] * len(said))

    if conversation.system is not None:
        say(SYSTEM, conversation.system, learnt=False)
    for prompt, answer in conversation.turns:
        say(USER, prompt, learnt=False)
        say(ASSISTANT, answer, learnt=True)
    return ids, labels


def batches(
    tokenizer: PreTrainedTokenizerFast,
    conversations: Iterator[Conversation],
    *,
    tokens: int,
    width: int,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, labels), int64 [rows, longest] with rows * longest <= `tokens`.

    Rows of like length share a batch, so that little is padding; each is cut at `width`.
    """
    rng = random.Random(f"batches {seed}")
    while True:
        pool = [tokens_of(tokenizer, c) for c in itertools.islice(conversations, _POOL)]
        cut = [(ids[:width], labels[:width]) for ids, labels in pool]
        groups = list(_grouped(sorted(cut, key=lambda row: len(row[0])), tokens))
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group, tokenizer.pad_token_id)


def _grouped(rows: list[Row], tokens: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        if group and (len(group) + 1) * len(row[0]) > tokens:
            yield group
            group = []
        group.append(row)
    yield group


def _padded(rows: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = [row + [pad] * (longest - len(row)) for row, _ in rows]
    labels = [row + [IGNORED] * (longest - len(row)) for _, row in rows]
    return torch.tensor(ids), torch.tensor(labels)

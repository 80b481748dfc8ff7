"""One training run in a process of its own: what it cost, what it left, and what it answers itself.

Seconds are the process's CPU time, so that other programs on the core count little. Memory is the
highest resident size above that of a process which has trained a model of no size.
"""

import hashlib
import itertools
import json
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from finetuning.methods import ADAPTER, METHODS, load_base, trainable
from finetuning.tasks import TASKS, Sizes, shuffled, splits
from weft.server.demo import BASE
from weft.server.demo.batches import IGNORED, Row, batches, tokens_of
from weft.server.demo.corpus import Conversation
from weft.server.demo.fit import adapter_optimizers, fit
from weft.server.demo.recipes import CONTEXT

MAX_NEW_TOKENS = 48
_VALUE_BYTES = 4
_STATES = 3  # a gradient and AdamW's two averages
_CODE = ("bottleneck", "methods", "tasks", "training")


@dataclass(frozen=True)
class Budget:
    """What every run is given: data, and steps of at most `tokens` each.

    checked: test prompts that the trained model also answers itself
    """

    steps: int
    tokens: int
    sizes: Sizes
    checked: int


@dataclass(frozen=True)
class Job:
    """One training run."""

    method: str
    task: str
    rate: float
    seed: int
    budget: Budget

    def folder(self, root: Path) -> Path:
        """Where its files lie; another one for other settings, code or base."""
        known = hashlib.sha256(json.dumps(asdict(self.budget)).encode())
        code = [Path(__file__).with_name(f"{name}.py") for name in _CODE]
        for path in (*code, BASE / "model.safetensors"):
            known.update(path.read_bytes())
        name = f"{self.task}-{self.method}-{self.rate:g}-{self.seed}"
        return root / f"{name}-{known.hexdigest()[:12]}"


@dataclass(frozen=True)
class Trained:
    """What a run left.

    adapter: the folder that weft serves   trainable: values   checkpoint_bytes: of weights
    seconds: of CPU, of the training loop   peak_bytes: see the module
    state_bytes: weights, gradients and AdamW's two averages   validation_loss: nats a token
    answers: tokens of the first test prompts by the trained model's own forward
    """

    job: Job
    adapter: Path
    trainable: int
    checkpoint_bytes: int
    seconds: float
    peak_bytes: int
    state_bytes: int
    validation_loss: float
    answers: tuple[tuple[int, ...], ...]


def trained(job: Job, root: Path) -> Trained:
    """What the run left, from its files where it was done before."""
    folder = job.folder(root)
    figures = folder / "figures.json"
    if not figures.exists():
        # A process for each: its CPU time and its memory are those of the run alone.
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.apply(_train, (job, folder))
        figures.write_text(json.dumps(found) + "\n")
    values = json.loads(figures.read_text())
    values["answers"] = tuple(tuple(tokens) for tokens in values["answers"])
    return Trained(job=job, adapter=folder / ADAPTER, **values)


def prompt_of(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[int, ...]:
    """The tokens before the answer of a conversation of one turn."""
    ids, labels = tokens_of(tokenizer, conversation)
    start = next(position for position, label in enumerate(labels) if label != IGNORED)
    return tuple(ids[:start])


def _train(job: Job, folder: Path) -> dict[str, Any]:
    warnings.simplefilter("ignore", FutureWarning)  # peft names a cache as older models did
    torch.set_num_threads(1)
    _warm_up()
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(BASE)
    method, budget = METHODS[job.method], job.budget
    data = splits(TASKS[job.task], budget.sizes)
    rows = batches(
        tokenizer,
        shuffled(data.train, job.seed),
        tokens=budget.tokens,
        width=CONTEXT,
        seed=job.seed,
    )
    before = _peak_bytes()
    torch.manual_seed(job.seed)
    model = method.wrap(load_base(method.quantization))
    optimizers = adapter_optimizers(model, job.rate)
    count = trainable(model)
    stored = sum(parameter.nbytes for parameter in model.parameters())
    start = time.process_time()
    fit(model, rows, optimizers, steps=budget.steps, report=lambda *_: None)
    seconds, peak = time.process_time() - start, _peak_bytes() - before
    saved = method.save(model, folder)
    asked = [prompt_of(tokenizer, each) for each in data.test[: budget.checked]]
    return {
        "trainable": count,
        "checkpoint_bytes": saved,
        "seconds": seconds,
        "peak_bytes": peak,
        "state_bytes": stored + _STATES * _VALUE_BYTES * count,
        "validation_loss": _loss(model, [tokens_of(tokenizer, c) for c in data.validation]),
        "answers": [_greedy(model, prompt, tokenizer.eos_token_id) for prompt in asked],
    }


@torch.no_grad()
def _loss(model: nn.Module, rows: Sequence[Row]) -> float:
    """Nats a token of the answers."""
    total, count = 0.0, 0
    for ids, labels in rows:
        learnt = sum(label != IGNORED for label in labels)
        inputs = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
        total += float(model(**inputs, use_cache=False).loss) * learnt
        count += learnt
    return total / count


@torch.no_grad()
def _greedy(model: nn.Module, prompt: tuple[int, ...], end: int) -> list[int]:
    """By one forward over all tokens so far for each new one.

    peft's own `generate()` does not serve soft prompts rightly with this transformers.
    """
    answer: list[int] = []
    while len(answer) < MAX_NEW_TOKENS and end not in answer:
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids, use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


def _warm_up() -> None:
    """Trains a model of no size, so that what the libraries take is there before."""
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1))
    rows = itertools.repeat((torch.ones(2, 2, dtype=torch.int64),) * 2)
    fit(model, rows, adapter_optimizers(model, 1e-3), steps=2, report=lambda *_: None)


def _peak_bytes() -> int:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024

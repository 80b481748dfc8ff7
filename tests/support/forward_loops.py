"""What peft answers by its forward alone, called once for each token on all tokens so far.

peft's `generate()` does not serve the methods that stand before a prompt rightly with this
transformers; its forward does.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from adapter_files import read_config
from exactness import Answer, Question, is_clear
from peft.tuners.lora.variants import calculate_alora_offsets
from peft_adapters import load_peft
from tiny_models import tiny_model
from torch import Tensor

Weighted = tuple[Path, float]


class LoopOracle:
    """A model, adapted or not, asked prompts of equal length together, which changes no answer.

    parts: the adapters that it computes, each with its weight
    """

    def __init__(self, model: Any, *parts: Weighted) -> None:
        self.parts = parts
        self._model = model
        tasks = (read_config(path).get("task_id") for path, _ in parts)
        self._task: int = next((task for task in tasks if task is not None), 0)

    @classmethod
    def of(cls, arch: str, adapter: Path) -> "LoopOracle":
        """stock peft with one adapter on `tiny_model(arch)`."""
        return cls(load_peft(tiny_model(arch), adapter), (adapter, 1.0))

    @torch.inference_mode()
    def answers(self, prompts: Sequence[tuple[int, ...]], tokens: int) -> list[Answer]:
        """Greedy tokens after each of the prompts."""
        ids, length = torch.tensor(prompts), len(prompts[0])
        steps: list[Tensor] = []
        for _ in range(tokens):
            steps.append(self._logits(ids, length)[:, -1].float())
            ids = torch.cat([ids, steps[-1].argmax(-1, keepdim=True)], dim=1)
        return [
            Answer(tuple(row[length:]), logits)
            for row, logits in zip(ids.tolist(), torch.stack(steps, dim=1), strict=True)
        ]

    def questions(self, prompts: Iterable[tuple[int, ...]], tokens: int) -> list[Question]:
        """Those of equally long prompts whose choices are all clear, with their answers."""
        asked = list(prompts)
        return [
            Question(prompt, answer, self.parts)
            for prompt, answer in zip(asked, self.answers(asked, tokens), strict=True)
            if is_clear(answer)
        ]

    def _logits(self, ids: Tensor, prompt: int) -> Tensor:
        config, more = getattr(self._model, "active_peft_config", None), {}
        if config is not None and config.peft_type in ("MULTITASK_PROMPT_TUNING", "POLY"):
            more["task_ids"] = torch.full((len(ids),), self._task)
        if getattr(config, "alora_invocation_tokens", None):
            # From the prompt alone, as when it is generated from; peft would search the answer too.
            offsets = calculate_alora_offsets(
                self._model.peft_config, self._model.active_adapter, ids[:, :prompt]
            )
            past = ids.shape[1] - prompt
            more["alora_offsets"] = [None if each is None else each + past for each in offsets]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's sparse tensors, and arguments to be renamed
            logits: Tensor = self._model(input_ids=ids, use_cache=False, **more).logits
        return logits


def combined(
    arch: str,
    loras: Sequence[Weighted] = (),
    *,
    beneath: Path | None = None,
    prompt: Path | None = None,
) -> LoopOracle:
    """Several adapters as one, as peft has it.

    loras: joined by peft's "cat" with their weights   beneath: any other that changes weights,
    merged into the base before   prompt: one that stands before the prompt, on the merged base

    Merging a LoRA of an embedding would change a tied head, too, which peft otherwise does not.
    """
    model: Any = tiny_model(arch)
    parts = [*loras]
    if beneath is not None:
        model = load_peft(model, beneath).merge_and_unload()
        parts.append((beneath, 1.0))
    if loras:
        model = _joined(model, loras)
    if prompt is not None:
        parts.append((prompt, 1.0))
        model = load_peft(model.merge_and_unload() if loras else model, prompt)
    return LoopOracle(model, *parts)


def _joined(base: Any, loras: Sequence[Weighted]) -> Any:
    (first, _), *others = loras
    model: Any = load_peft(base, first)
    names = ["default", *(f"other-{number}" for number in range(len(others)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (path, _) in zip(names[1:], others, strict=True):
            model.load_adapter(str(path), name)
        weights = [weight for _, weight in loras]
        model.add_weighted_adapter(names, weights, "mixed", combination_type="cat")
    model.set_adapter("mixed")
    return model

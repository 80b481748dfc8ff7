"""The yardstick: `peft` serving the same requests, one adapter group after another."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig


@dataclass(frozen=True)
class Job:
    """One request: its prompt and the index of its adapter; None for the base."""

    prompt: tuple[int, ...]
    adapter: int | None


class PeftServer:
    """One base model with all adapters attached; `generate` runs once per adapter in use."""

    def __init__(self, base: Path, adapters: list[Path], dtype: torch.dtype) -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        self._model = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
        for index, folder in enumerate(adapters[1:], start=1):
            self._model.load_adapter(folder, adapter_name=str(index))
        self._model.eval()

    def run(self, jobs: list[Job], new_tokens: int) -> float:
        """Answers all jobs with `new_tokens` greedy tokens each; returns the seconds it took."""
        start = time.perf_counter()
        self.answers(jobs, new_tokens)
        return time.perf_counter() - start

    def answers(self, jobs: Sequence[Job], new_tokens: int) -> list[tuple[int, ...]]:
        """The `new_tokens` greedy tokens of each job."""
        groups: dict[int | None, list[int]] = defaultdict(list)
        for place, job in enumerate(jobs):
            groups[job.adapter].append(place)
        answers: dict[int, list[int]] = {}
        for adapter, places in groups.items():
            prompts = torch.tensor([jobs[place].prompt for place in places])
            answers |= zip(places, self._group(adapter, prompts, new_tokens).tolist(), strict=True)
        return [tuple(answers[place]) for place in range(len(jobs))]

    @torch.inference_mode()
    def _group(self, adapter: int | None, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0
        )
        arguments = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "generation_config": settings,
        }
        if adapter is None:
            with self._model.disable_adapter():
                output = self._model.generate(**arguments)
        else:
            self._model.set_adapter(str(adapter))
            output = self._model.generate(**arguments)
        return output[:, ids.shape[1] :]

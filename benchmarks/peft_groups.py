"""The yardstick: `peft` serving the same requests, one adapter group after another."""

import time
from collections import defaultdict
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
        groups: dict[int | None, list[tuple[int, ...]]] = defaultdict(list)
        for job in jobs:
            groups[job.adapter].append(job.prompt)
        start = time.perf_counter()
        for adapter, prompts in groups.items():
            self._group(adapter, torch.tensor(prompts), new_tokens)
        return time.perf_counter() - start

    @torch.inference_mode()
    def _group(self, adapter: int | None, ids: torch.Tensor, new_tokens: int) -> None:
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
                self._model.generate(**arguments)
        else:
            self._model.set_adapter(str(adapter))
            self._model.generate(**arguments)

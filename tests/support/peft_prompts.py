"""Random adapters that stand before the prompt, made with stock peft, and peft's answers by loops.

peft's `generate()` does not serve these methods rightly with this transformers; its forward does.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from exactness import Answer, Oracle
from peft import PeftModel, get_peft_model
from peft.tuners.lora.variants import calculate_alora_offsets
from tiny_models import tiny_model
from torch import Tensor

SOFT = {
    "PROMPT_TUNING": (peft.PromptTuningConfig, {}),
    "P_TUNING": (peft.PromptEncoderConfig, {"encoder_hidden_size": 32}),
    "MULTITASK_PROMPT_TUNING": (
        peft.MultitaskPromptTuningConfig,
        {"num_tasks": 3, "num_ranks": 2},
    ),
    "CPT": (peft.CPTConfig, {}),
}
PREFIX: dict[str, tuple[Any, dict[str, Any]]] = {
    "PREFIX_TUNING": (peft.PrefixTuningConfig, {}),
    "CARTRIDGE": (peft.CartridgeConfig, {"num_frozen_tokens": 0}),
}
TASK = 1


def save_prompt(path: Path, arch: str, method: str, count: int, *, seed: int = 0) -> Path:
    """Writes an adapter of `count` positions as peft saves it; returns `path`.

    Of multitask tuning, task `TASK` is the one to serve.
    """
    config, fields = (SOFT | PREFIX)[method]
    sizes = {"num_virtual_tokens": count}
    if method == "CPT":
        sizes = {"cpt_token_ids": list(range(7, 7 + count))}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        base = tiny_model(arch)
        adapted = get_peft_model(base, config(task_type="CAUSAL_LM", **sizes, **fields))
        scale = 1.0 if method in PREFIX else base.get_input_embeddings().weight.std().item()
        _redraw(adapted, scale)
        adapted.save_pretrained(str(path))
    if method == "MULTITASK_PROMPT_TUNING":
        config_file = path / "adapter_config.json"
        config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"task_id": TASK}))
    return path


def _redraw(adapted: PeftModel, scale: float) -> None:
    for name, parameter in adapted.named_parameters():
        if "prompt_encoder" in name:
            factor = 1.0 if "prefix_task" in name else scale
            parameter.data = torch.randn_like(parameter) * factor


class LoopOracle(Oracle):
    """What peft's forward answers, called once for each token on all tokens so far."""

    @torch.inference_mode()
    def answer(self, prompt: tuple[int, ...], tokens: int) -> Answer:
        ids, rows = torch.tensor([prompt]), []
        for _ in range(tokens):
            rows.append(self._logits(ids, len(prompt))[0, -1].float())
            ids = torch.cat([ids, rows[-1].argmax().view(1, 1)], dim=1)
        return Answer(tuple(ids[0, len(prompt) :].tolist()), torch.stack(rows).log_softmax(-1))

    def _logits(self, ids: Tensor, prompt: int) -> Tensor:
        config, more = self._model.active_peft_config, {}
        if config.peft_type == "MULTITASK_PROMPT_TUNING":
            more["task_ids"] = torch.tensor([TASK])
        if getattr(config, "alora_invocation_tokens", None):
            # From the prompt alone, as when it is generated from; peft would search the answer too.
            (offset,) = calculate_alora_offsets(
                self._model.peft_config, self._model.active_adapter, ids[:, :prompt]
            )
            more["alora_offsets"] = [None if offset is None else offset + ids.shape[1] - prompt]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            logits: Tensor = self._model(input_ids=ids, **more).logits
        return logits

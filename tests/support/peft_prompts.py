"""Random adapters that stand before the prompt, or are attended to, made with stock peft."""

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from adapter_files import edit_config
from peft import PeftModel, get_peft_model
from tiny_models import tiny_model

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
    return edit_config(path, task_id=TASK) if method == "MULTITASK_PROMPT_TUNING" else path


def save_adaption_prompt(
    path: Path, arch: str, *, length: int = 3, layers: int = 2, gate: float = 1.0, **model: Any
) -> Path:
    """Writes an adaption prompt for `tiny_model(arch, **model)` as peft saves it; returns `path`.

    length: its rows   layers: of the last layers, how many have one   gate: how open it is
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(length)
        config = peft.AdaptionPromptConfig(
            task_type="CAUSAL_LM", adapter_len=length, adapter_layers=layers
        )
        adapted = get_peft_model(tiny_model(arch, **model), config)
        for name, parameter in adapted.named_parameters():
            if "adaption_gate" in name:
                parameter.data.fill_(gate)
        adapted.save_pretrained(str(path))
    return path


def _redraw(adapted: PeftModel, scale: float) -> None:
    for name, parameter in adapted.named_parameters():
        if "prompt_encoder" in name:
            factor = 1.0 if "prefix_task" in name else scale
            parameter.data = torch.randn_like(parameter) * factor

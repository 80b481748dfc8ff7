"""Strong random LoRA adapters made with stock peft, and what stock peft computes with them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel


def save_lora(
    path: Path,
    arch: str,
    *,
    seed: int = 0,
    strength: float = 1.0,
    model: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Writes an adapter for `tiny_model(arch, **model)` as peft saves it; returns `path`.

    config: fields of peft's LoraConfig. What peft starts at zero is drawn anew, so that the adapter
    clearly changes the output; `strength` scales that.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        base = tiny_model(arch, **(model or {}))
        adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config))
        redraw(adapted, strength)
        adapted.save_pretrained(str(path))
    return path


def redraw(adapted: PeftModel, strength: float = 1.0) -> None:
    """Moves an adapter's trainable tensors as training would, from torch's random state."""
    for name, parameter in adapted.named_parameters():
        if "lora_magnitude" in name:
            parameter.data *= 1 + torch.randn_like(parameter) * 0.3 * strength
        elif "lora_" in name:
            scale = 0.3 / parameter.shape[-1] ** 0.5 if "embedding" not in name else 0.02
            parameter.data += torch.randn_like(parameter) * scale * strength
        elif parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.5 * parameter.std() * strength


def load_peft(base: PreTrainedModel, path: Path) -> PeftModel:
    """The adapter on `base`, as stock peft loads it; changes `base`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, str(path)).eval()


@torch.inference_mode()
def peft_logits(arch: str, path: Path | None, ids: Tensor, **model: Any) -> Tensor:
    """Logits [batch, tokens, vocabulary] of stock peft on a fresh tiny model.

    Without a path, of the base alone.
    """
    base = tiny_model(arch, **model)
    adapted = base if path is None else load_peft(base, path)
    logits: Tensor = adapted(input_ids=ids, use_cache=False).logits
    return logits

"""An adapter's card without serving it: the same reading and lowering, on a base of shapes only."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from weft.adapters.base import BaseModules
from weft.adapters.card import Card, describe
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.methods import lower
from weft.adapters.tensors import read_tensors
from weft.kernels.low_rank import arena_dtype
from weft.server.engine import hardware, quantization, weights
from weft.server.engine.attention import use_paged_attention
from weft.server.engine.checks import check_config
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.weight_files import weight_norms_in
from weft.server.vocabulary import vocabulary_warning


def inspect_adapter(adapter: Path, base_folder: Path, base_name: str) -> Card:
    """What the engine on this machine would make of the adapter.

    Raises AdapterInvalid with the reason for which it would be refused, ModelUnsupported where the
    base itself cannot be served.
    """
    checkpoint = read_checkpoint(adapter)
    config = weights.read_config(base_folder)
    check_config(config)
    device = hardware.choose_device("auto")
    dtype = hardware.choose_dtype("auto", device, weights.count_parameters(config))

    def load() -> PreTrainedModel:
        cpu = torch.device("cpu")
        return weights.load_weights(base_folder, config, dtype=dtype, device=cpu, progress=_ignore)

    if quantization.stored_as(config) is None:
        base = _base(weights.skeleton(config), load)
    else:  # a skeleton would not say which layers are quantised
        base = _with_refusals(load())
    plan = lower(checkpoint, read_tensors(checkpoint), base)
    card = describe(
        checkpoint,
        plan,
        base,
        dtype=arena_dtype(device, dtype),
        base_name=base_name,
        weight_norm=weight_norms_in(base_folder, base),
    )
    vocabulary = vocabulary_warning(checkpoint.weights.parent, base_folder)
    return card if vocabulary is None else replace(card, warnings=(*card.warnings, vocabulary))


def _base(skeleton: PreTrainedModel, load: Callable[[], PreTrainedModel]) -> BaseModules:
    """The base's modules; its weights are read only for an adapter that needs one."""

    @cache
    def loaded() -> BaseModules:
        return _with_refusals(load())

    def parameter(module: str, name: str) -> Tensor:
        return loaded().parameter(module, name)

    try:
        # In bfloat16, because expert layers have no float32 kernel to tell shapes from.
        skeleton.bfloat16()
        return _with_refusals(skeleton).with_parameters(parameter)
    except (NotImplementedError, RuntimeError):  # a forward that looks at values needs real ones
        return loaded()


def _with_refusals(model: PreTrainedModel) -> BaseModules:
    use_paged_attention(model)
    spec = KVSpec.discover(model)
    return BaseModules.of(model, spec.refused, spec.shapes)


def _ignore(stage: str, done: int, total: int) -> None:
    """Takes progress that nobody watches."""

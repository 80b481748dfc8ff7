"""An adapter's card without serving it, and what the adapter does after the canary text.

Where the base's weights are not to be run, the card comes from the same reading and lowering on a
base of shapes only.
"""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from weft.adapters.base import BaseModules
from weft.adapters.card import Card, describe
from weft.adapters.checkpoint import Checkpoint, read_checkpoint
from weft.adapters.delta import LoadedWeights
from weft.adapters.methods import lower
from weft.adapters.store import Store
from weft.adapters.tensors import read_tensors
from weft.kernels.low_rank import arena_dtype
from weft.server.engine import drive, hardware, weights
from weft.server.engine.attention import use_paged_attention
from weft.server.engine.canary import CANARY_TOKENS
from weft.server.engine.checks import check_config
from weft.server.engine.engine import Engine
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.messages import EngineConfig, LoadReport
from weft.server.engine.quantization import Quantization
from weft.server.engine.unsupported import ModelTooLarge
from weft.server.engine.weight_files import FileWeights
from weft.server.vocabulary import vocabulary_of, vocabulary_warning


@dataclass(frozen=True)
class Inspected:
    """report: of the engine that ran the adapter, or None; then `not_run` says why it did not."""

    card: Card
    report: LoadReport | None = None
    not_run: str = ""


@dataclass(frozen=True)
class InspectedOn:
    """The base that an adapter is looked at on.

    name: what the base is called   quantization: as `--quantization` has it
    run: whether its weights may be loaded just to run them
    """

    folder: Path
    name: str
    quantization: str = "none"
    run: bool = True


def inspect_adapter(adapter: Path, base: InspectedOn) -> Inspected:
    """What the engine on this machine would make of the adapter.

    Raises AdapterInvalid with the reason for which it would be refused, ModelUnsupported where the
    base itself cannot be served.
    """
    checkpoint = read_checkpoint(adapter)
    if base.run:
        try:
            found = _run(adapter, checkpoint, base)
        except ModelTooLarge as too_large:
            found = Inspected(_card(checkpoint, base), not_run=str(too_large))
    else:
        found = Inspected(_card(checkpoint, base), not_run="it was not asked for")
    served = vocabulary_of(base.folder)
    warning = vocabulary_warning(checkpoint.weights.parent, served)
    if warning is None:
        return found
    return replace(found, card=replace(found.card, warnings=(*found.card.warnings, warning)))


def _run(adapter: Path, checkpoint: Checkpoint, base: InspectedOn) -> Inspected:
    """The card and the report of an engine that loads the adapter as a server's does."""
    with tempfile.TemporaryDirectory(prefix="weft-inspect-") as store:
        digest = Store(Path(store)).put(adapter)
        config = EngineConfig(
            model=str(base.folder),
            base_names=(base.name,),
            store=store,
            quantization=base.quantization,
            max_num_seqs=2,
            max_model_len=CANARY_TOKENS + 1 + checkpoint.lead,
        )
        with contextlib.closing(Engine.load(config, _ignore)) as engine:
            report = drive.load(engine, digest)
            card = engine.versions.card(digest)
    assert card is not None
    return Inspected(card, report)


def _card(checkpoint: Checkpoint, on: InspectedOn) -> Card:
    """The card without running anything."""
    config = weights.read_config(on.folder)
    check_config(config)
    device = hardware.choose_device("auto")
    dtype = hardware.choose_dtype("auto", device, weights.count_parameters(config))
    base = _base(on, config, dtype)
    return describe(
        checkpoint,
        lower(checkpoint, read_tensors(checkpoint), base),
        base,
        dtype=arena_dtype(device, dtype),
        base_names=(on.name,),
        weights=LoadedWeights(base) if base.quantization else FileWeights(on.folder, base),
    )


def _base(on: InspectedOn, config: PreTrainedConfig, dtype: torch.dtype) -> BaseModules:
    """The base's modules; its weights are read only for an adapter that needs one."""
    quantized = Quantization.choose(on.quantization, config, dtype)

    def load() -> PreTrainedModel:
        return weights.load_weights(
            on.folder,
            config,
            dtype=dtype,
            device=torch.device("cpu"),
            progress=_ignore,
            quantized=quantized,
        )

    if quantized is not None:  # a skeleton would not say which layers are quantised
        return _with_refusals(load())
    return _read_when_needed(weights.skeleton(config), load)


def _read_when_needed(
    skeleton: PreTrainedModel, load: Callable[[], PreTrainedModel]
) -> BaseModules:
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

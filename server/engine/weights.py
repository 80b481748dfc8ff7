"""Finds a base model's files and turns them into a transformers model on its device.

Knows nothing of serving: what comes out computes attention eagerly, as transformers would.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from weft.server.engine import quantization, stored_weights
from weft.server.engine.quantization import Quantization
from weft.server.engine.unsupported import ModelUnsupported

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, and how many of how many of its steps are done."""

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def find_model(name: str) -> Path:
    """The folder of a model given as a local folder or a hub id; downloads the latter.

    Raises ModelUnsupported where there is no such model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HFValidationError, RepositoryNotFoundError):
        raise ModelUnsupported(f"there is no folder and no hub model {name!r}") from None
    except OSError as error:
        raise ModelUnsupported(f"{name!r} is no folder, and the hub did not answer") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The model's configuration; raises ModelUnsupported where it cannot be read."""
    if not (folder / "config.json").is_file():
        raise ModelUnsupported(f"{folder.name} has no config.json: it is not a model's folder")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise ModelUnsupported(f"config.json: {str(error).splitlines()[0]}") from error
    quantization.stored_as(config)
    return config


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights (on the meta device), to read names, shapes and sizes from."""
    with torch.device("meta"):
        model = _from_config(config, torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def count_parameters(config: PreTrainedConfig) -> int:
    """How many values the model's weights are, tied ones counted once."""
    return sum(parameter.numel() for parameter in skeleton(config).parameters())


def load_weights(
    folder: Path,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    quantized: Quantization | None = None,
    stored: torch.dtype | None = None,
) -> PreTrainedModel:
    """The model with its safetensors weights, in eval mode; raises ModelUnsupported.

    quantized: how to, as `Quantization.choose` says; files that are quantised are so without it
    stored: the dtype of the files, where large weights are to stay in them; see stored_weights
    """
    quantized = quantized or Quantization.choose("none", config, dtype)
    if not any(folder.glob("*.safetensors")):
        raise ModelUnsupported(
            f"{folder.name} has no .safetensors weights (convert .bin files with transformers' "
            "save_pretrained)"
        )
    with _reported("weights", progress), stored_weights.left_in(stored):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
            **quantization.loading(quantized, device),
        )
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelUnsupported(f"the weights lack {missing[0]}" + _more(missing))
    if stored is not None:
        stored_weights.adopt(model, dtype)
    if quantized is None or quantized.is_undone:
        return _ready(model, device)
    return quantization.adopt(model)


def random_weights(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    quantized: Quantization | None = None,
) -> PreTrainedModel:
    """The model with weights drawn by `seed`: for benchmarks, where only shapes matter."""
    with torch.random.fork_rng(), device:
        torch.manual_seed(seed)
        model = _ready(_from_config(config, dtype), device)
    if quantized is not None and quantized.settings is not None:
        quantization.quantize(model, quantized.settings, device)
    return model


def spare_padding_checks(model: PreTrainedModel) -> None:
    """Lets no part of the model look for padding among a step's tokens, only to warn of it.

    Some do at each call, and wait for the device; a step has no padding and brings no mask.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module)["warn_if_padding_and_no_attention_mask"] = _nothing


def end_tokens(folder: Path, model: PreTrainedModel) -> tuple[int, ...]:
    """All tokens that end an answer: the generation config's, the config's and the tokenizer's."""
    ends: set[int] = set()
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        ends.update([ids] if isinstance(ids, int) else ids or ())
    chat_end = _tokenizer_end(folder)
    return tuple(sorted(ends if chat_end is None else ends | {chat_end}))


def _from_config(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=dtype, attn_implementation="eager"
    )
    return model


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _ready(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    model.requires_grad_(False)
    placed: PreTrainedModel = model.to(device).eval()  # type: ignore[arg-type]
    return placed


def _tokenizer_end(folder: Path) -> int | None:
    """The id of the tokenizer's own end token; chat models often end a turn with another one."""
    try:
        end = json.loads((folder / "tokenizer_config.json").read_text()).get("eos_token")
        content = end.get("content") if isinstance(end, dict) else end
        if content is None:
            return None
        tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        found: int | None = tokenizer.token_to_id(content)
        return found
    except Exception:  # noqa: BLE001 - tokenizers raises bare Exception; text is not our concern
        return None


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more tensors" if len(names) > 1 else ""


@contextlib.contextmanager
def _reported(stage: str, progress: Progress) -> Iterator[None]:
    """Sends transformers' progress bars to `progress` instead of the terminal."""

    def hook(factory: Any, args: Any, kwargs: Any) -> Any:
        return _Bar(args[0] if args else kwargs.get("iterable"), stage, progress)

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


class _Bar:
    """What transformers needs of a tqdm bar."""

    def __init__(self, items: Any, stage: str, progress: Progress) -> None:
        self._items = list(items) if items is not None else []
        self._stage = stage
        self._progress = progress

    def __iter__(self) -> Iterator[Any]:
        for done, item in enumerate(self._items):
            self._progress(self._stage, done, len(self._items))
            yield item
        self._progress(self._stage, len(self._items), len(self._items))

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None

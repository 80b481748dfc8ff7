"""How a base's linear layers are quantised: as asked for, or as its own files are.

Embeddings and the output head stay as they are, as transformers leaves them. MXFP4, as gpt_oss has
its experts, is undone when the files are read.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.quantization_config import Mxfp4Config

from weft.adapters.base import Quantized, head_of
from weft.server.engine import stored_weights
from weft.server.engine.unsupported import ModelUnsupported

# It looks for a kernel that would be downloaded, and warns at each start that there is none.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# It says that MXFP4 becomes bfloat16, whatever it becomes.
logging.getLogger("transformers.quantizers.quantizer_mxfp4").setLevel(logging.ERROR)

_FIELD = "config.json: quantization_config"
_UNDONE = "mxfp4"  # what computes in it needs kernels that transformers would download
_BYTES = {"nf4": 0.55, "fp4": 0.57, "int8": 1.01}  # with the constants to read them


@dataclass(frozen=True)
class Quantization:
    """One way to store the linear layers' weights.

    name: "nf4", "fp4", "int8" or "mxfp4"   settings: to quantise by; None where the files are so
    is_undone: whether the files are so and the served weights, which are read from them, are not
    """

    name: str
    settings: BitsAndBytesConfig | None
    is_undone: bool = False

    @property
    def told(self) -> str:
        """What a person is told of it."""
        return f"{self.name}, dequantised" if self.is_undone else self.name

    @classmethod
    def choose(
        cls, wanted: str, config: PreTrainedConfig, dtype: torch.dtype
    ) -> "Quantization | None":
        """What `--quantization wanted` means for this model; None: it is not quantised.

        Raises ModelUnsupported.
        """
        own = stored_as(config)
        if own is not None:
            if wanted != "none":
                raise ModelUnsupported(
                    f"--quantization {wanted}: the model's own files are quantised as {own}: "
                    "leave the flag out"
                )
            return cls(own, None, is_undone=own == _UNDONE)
        match wanted:
            case "none":
                return None
            case "nf4":
                settings = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=dtype,
                )
            case "int8":
                settings = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
            case _:
                raise ModelUnsupported(f"--quantization {wanted} is not one of none, nf4, int8")
        return cls(wanted, settings)

    def digest(self, base: str) -> str:
        """The digest of the base of digest `base`, quantised so: it computes another function."""
        if self.settings is None:
            return base
        return hashlib.sha256(f"{base} {self.name}".encode()).hexdigest()


def stored_as(config: PreTrainedConfig) -> str | None:
    """How the model's own files are quantised; None: not at all. Raises ModelUnsupported."""
    own: Any = getattr(config, "quantization_config", None)
    if own is None:
        return None
    fields: Mapping[str, Any] = own if isinstance(own, Mapping) else own.to_dict()
    four, eight = bool(fields.get("load_in_4bit")), bool(fields.get("load_in_8bit"))
    method = fields.get("quant_method", "bitsandbytes" if four or eight else None)
    if method == _UNDONE:
        return _UNDONE
    if method != "bitsandbytes" or not (four or eight):
        raise ModelUnsupported(f"{_FIELD}: only bitsandbytes' and mxfp4 are served, not {method!r}")
    if fields.get("llm_int8_has_fp16_weight"):
        raise ModelUnsupported(f"{_FIELD}: llm_int8_has_fp16_weight is for training")
    return str(fields.get("bnb_4bit_quant_type", "fp4")) if four else "int8"


def loading(quantized: Quantization | None, device: torch.device) -> dict[str, Any]:
    """How transformers is told to read such a model; one that it quantises it must also place."""
    if quantized is None:
        return {}
    if quantized.is_undone:
        return {"quantization_config": Mxfp4Config(dequantize=True)}
    own = {} if quantized.settings is None else {"quantization_config": quantized.settings}
    return {"device_map": {"": device}, **own}


def expected_bytes(
    skeleton: PreTrainedModel,
    dtype: torch.dtype,
    quantization: Quantization | None,
    stored: torch.dtype | None = None,
) -> int:
    """About how many bytes the model's weights will take.

    stored: the dtype in which large weights are kept, where that is another one
    """
    total = sum(parameter.numel() for parameter in skeleton.parameters())
    if stored is not None:
        kept = stored_weights.values_kept(skeleton)
        return (total - kept) * dtype.itemsize + kept * stored.itemsize
    if quantization is None or quantization.is_undone:
        return total * dtype.itemsize
    head = head_of(skeleton)
    small = sum(
        module.weight.numel()
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name != head
    )
    return (total - small) * dtype.itemsize + int(small * _BYTES[quantization.name])


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the model's weights, tied ones once, with what is needed to read quantised ones."""
    tensors: dict[int, Tensor] = {id(tensor): tensor for tensor in model.parameters()}
    for module in model.modules():
        if isinstance(module, Quantized):
            tensors |= {id(tensor): tensor for tensor in module.constants}
        elif isinstance(module, stored_weights.Stored) and module.is_stored:
            tensors[id(module._parameters["weight"])] = module.stored
    return sum(tensor.nbytes for tensor in tensors.values())


def adopt(model: PreTrainedModel) -> PreTrainedModel:
    """Lets a model that transformers quantised compute as this server does; in place."""
    from weft.server.engine import quantized_linear

    quantized_linear.adopt(model)
    return model


def quantize(model: PreTrainedModel, settings: BitsAndBytesConfig, device: torch.device) -> None:
    """Quantises the linear layers of a loaded model in place."""
    from weft.server.engine import quantized_linear

    plain = dict(model.named_modules())
    quantizer: Any = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map={"": device})
    quantized_linear.fill(model, plain, device)
    quantizer.postprocess_model(model)
    quantized_linear.adopt(model)

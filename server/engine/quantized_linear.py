"""Linear layers whose weights bitsandbytes stores in 4 or 8 bits: what they compute, as peft does.

They are bitsandbytes' own layers, so that peft takes them for such; a row of theirs depends on no
other row. Imported only where a base is quantised: bitsandbytes takes seconds to load.
"""

import copy
from collections.abc import Mapping
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_FUSED_OUTPUTS = 32
_FEW_ROWS = 8
_BLOCK = 1 << 20  # values


class Linear4bit(bnb.nn.Linear4bit):
    """`linear`, computed in its compute dtype.

    bitsandbytes' fused kernel for CPUs computes in bfloat16 whatever it is given, and fails on some
    widths; it is used only where neither matters.
    """

    def __init__(self, linear: bnb.nn.Linear4bit) -> None:
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, has_bias, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.compute_dtype = linear.compute_dtype
        self.compute_type_is_set = True
        self.quant_storage = linear.quant_storage
        state = linear.weight.quant_state
        self.quant_state = state
        self.support_avx512bf16_for_cpu &= (
            self.compute_dtype == torch.bfloat16
            and linear.in_features % state.blocksize == 0
            and linear.out_features % _FUSED_OUTPUTS == 0
        )

    @property
    def quantization(self) -> str:
        """ "nf4" or "fp4"."""
        return str(self.weight.quant_state.quant_type)

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """What is stored beside the weight to read it."""
        states = (self.weight.quant_state, getattr(self.weight.quant_state, "state2", None))
        held = (getattr(state, name, None) for state in states for name in ("absmax", "code"))
        return tuple(tensor for tensor in held if tensor is not None)

    def dequantized_weight(self) -> Tensor:
        """`[out_features, in_features]`, in the dtype that was quantised; a new tensor."""
        data, state = self.weight.data, self.weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            data, state = _unpacked(data, state)
        weight: Tensor = bnb.functional.dequantize_4bit(data, state)
        return weight


class Linear8bit(bnb.nn.Linear8bitLt):
    """`linear` without the quantisation of what it is given: `y = x (scale ∘ W)ᵀ + bias`.

    LLM.int8 rounds each row to 8 bits but for columns in which any row of the batch is large, so
    that a request's answer would depend on the others; and it jumps where rounding tips over.
    """

    quantization = "int8"

    def __init__(self, linear: bnb.nn.Linear8bitLt) -> None:
        has_bias = linear.bias is not None
        super().__init__(
            linear.in_features,
            linear.out_features,
            has_bias,
            has_fp16_weights=False,
            device="meta",
        )
        self.weight = linear.weight
        self.bias = linear.bias
        self._scale = linear.weight.SCB.float() / torch.iinfo(torch.int8).max

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """What is stored beside the weight to read it."""
        return (self._scale, self.weight.SCB)

    def dequantized_weight(self) -> Tensor:
        """`[out_features, in_features]` in float32; a new tensor."""
        weight: Tensor = self.weight.data * self._scale[:, None]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]; returns [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(rows) <= _FEW_ROWS:
            y: Tensor = torch._weight_int8pack_mm(rows, self.weight.data, self._scale.to(x.dtype))
        else:
            y = self._blockwise(rows)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def _blockwise(self, x: Tensor) -> Tensor:
        """`x (scale ∘ W)ᵀ`; on a CPU the widened weight is never larger than a cache."""
        widened = _BLOCK // self.in_features if x.device.type == "cpu" else self.out_features
        step = max(1, widened)
        scale_weight = x.dtype == torch.float16  # sums of unscaled weights can exceed float16
        y = x.new_empty(len(x), self.out_features)
        for start in range(0, self.out_features, step):
            part = slice(start, start + step)
            weight = self.weight.data[part].to(x.dtype)
            if scale_weight:
                weight *= self._scale[part, None]
            y[:, part] = F.linear(x, weight)
        return y if scale_weight else y.mul_(self._scale)


def adopt(model: nn.Module) -> None:
    """Puts these layers in place of bitsandbytes' in `model`, with the same weights; eval mode."""
    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            model.set_submodule(name, Linear4bit(module))
        elif isinstance(module, bnb.nn.Linear8bitLt):
            model.set_submodule(name, Linear8bit(module))
    model.requires_grad_(False).eval()


def fill(model: nn.Module, plain: Mapping[str, nn.Module], device: torch.device) -> None:
    """Quantises the weights of `plain` linear layers into bitsandbytes' of the same names."""
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            own: Any = plain[name]
            weight = own.weight.data if isinstance(own, nn.Linear) else own.weight.data.T
            settings = {k: v for k, v in vars(module.weight).items() if k not in ("CB", "SCB")}
            quantized = type(module.weight)(weight.cpu(), requires_grad=False, **settings)
            module.weight = quantized.to(device)
            module.bias = own.bias


def _unpacked(data: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A weight and its state out of the layout of the fused kernel, as copies."""
    state = copy.copy(state)
    state.original_nested = False  # the kernel rounded the scales: they stay what is computed with
    data, state = bnb.functional._convert_weight_packed_for_cpu_inverse(data, state)
    state.absmax = state.absmax.T.reshape(-1).float()
    return data, state

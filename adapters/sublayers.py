"""Where a base's attention and feed-forward sublayers begin and end, by exact names.

Named for each class of decoder layers whose code is known; nothing is guessed from names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Part = Literal["attention", "feed_forward"]


@dataclass(frozen=True)
class Sublayer:
    """One sublayer: the residual stream h becomes `h + output(... norm(h))`.

    of, layer: the name and the number of its decoder layer
    norm: the module that is given the residual stream
    output: the linear module that the sublayer ends with
    added: whether its output is added to the residual stream as it is, not through another norm
    """

    of: str
    layer: int
    part: Part
    norm: str
    output: str
    added: bool


_Ends = Mapping[Part, tuple[str, str]]

_LLAMA: _Ends = {
    "attention": ("input_layernorm", "self_attn.o_proj"),
    "feed_forward": ("post_attention_layernorm", "mlp.down_proj"),
}
_GPT2: _Ends = {
    "attention": ("ln_1", "attn.c_proj"),
    "feed_forward": ("ln_2", "mlp.c_proj"),
}
_GEMMA2: _Ends = {
    "attention": ("input_layernorm", "self_attn.o_proj"),
    "feed_forward": ("pre_feedforward_layernorm", "mlp.down_proj"),
}
_KNOWN: Mapping[str, _Ends] = {
    "GPT2Block": _GPT2,
    "Gemma2DecoderLayer": _GEMMA2,
    "LlamaDecoderLayer": _LLAMA,
    "MistralDecoderLayer": _LLAMA,
    "Qwen2DecoderLayer": _LLAMA,
    "Qwen3DecoderLayer": _LLAMA,
}


def sublayers_of(types: Mapping[str, str]) -> tuple[Sublayer, ...]:
    """The sublayers of a base in the order in which they run; empty where they are not known.

    types: the base's modules' types by name
    """
    return tuple(
        Sublayer(
            of=name,
            layer=int(name.rpartition(".")[2]),
            part=part,
            norm=f"{name}.{norm}",
            output=f"{name}.{output}",
            added=_KNOWN[type_name] is not _GEMMA2,
        )
        for name, type_name in types.items()
        for part, (norm, output) in _KNOWN.get(type_name, {}).items()
    )


class Residual:
    """The residual stream of one sublayer, seen where its norm is given it.

    Watched for only in steps in which a slot needs it, so that others cost nothing.
    """

    def __init__(self, norm: nn.Module) -> None:
        self._norm = norm
        self._seen: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def watch(self, *, needed: bool) -> None:
        """Tells whether the next step needs it."""
        if needed and self._handle is None:
            self._handle = self._norm.register_forward_pre_hook(self._see)
        elif not needed and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def take(self, width: int) -> Tensor:
        """What was seen in this step as [rows, width], once."""
        if self._seen is None:
            raise RuntimeError("a sublayer's output was computed before its norm")
        seen, self._seen = self._seen, None
        return seen.reshape(-1, width)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # Copies of the norm that compute single slots' rows share its hooks.
        if module is self._norm:
            self._seen = args[0]

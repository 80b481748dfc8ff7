"""What transformers' models call as attention: each layer's backend, strictly checked arguments.

Knows no scheduler and no adapter. A layer is found by its module, never by a number in a config.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from weft.adapters.step_state import StepState
from weft.kernels.attention import PagedBatch, paged_attention, write_kv
from weft.kernels.opaque import LIBRARY, number_of, numbered
from weft.server.engine.unsupported import ModelUnsupported

NAME = "weft"
_ATTRIBUTE = "paged_attention"
_NUMBER = "paged_attention_number"
_WITHOUT_EFFECT = frozenset({"position_ids"})


@dataclass(frozen=True)
class AttentionOptions:
    """How one call attends, in the terms of `weft.kernels.attention.paged_attention`."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None


class AttentionBackend(Protocol):
    """Attends for one module: q [T, heads, k_dim], k and v [T, kv_heads, ·] → [T, heads, v_dim]."""

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions
    ) -> Tensor:
        """Writes what the step adds to the cache, then attends."""


@dataclass
class AttentionStep:
    """The step that runs now, shared by all layers of one model.

    adapters: the same step as adapters see it, told of each layer's queries
    """

    batch: PagedBatch | None = None
    adapters: StepState | None = None


@dataclass(frozen=True)
class PagedLayer:
    """A layer's part of the KV cache; see `weft.kernels.attention` for the pools' shapes."""

    step: AttentionStep
    k_pool: Tensor
    v_pool: Tensor

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions
    ) -> Tensor:
        """Writes the step's keys and values to the pools and attends over them."""
        batch = self.step.batch
        if batch is None:
            raise RuntimeError("attention was called outside a step")
        if self.step.adapters is not None:
            self.step.adapters.queries = q
        write_kv(k, v, self.k_pool, self.v_pool, batch)
        return paged_attention(
            q,
            self.k_pool,
            self.v_pool,
            batch,
            scaling=options.scaling,
            window=options.window,
            softcap=options.softcap,
            sinks=options.sinks,
        )


def set_backend(module: nn.Module, backend: AttentionBackend | None) -> None:
    """Lets `module` attend by `backend`; None takes its backend away."""
    setattr(module, _ATTRIBUTE, backend)
    if not hasattr(module, _NUMBER):
        setattr(module, _NUMBER, number_of(module))


def pools_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """The pools of K and V of a module that has a part of the KV cache."""
    layer: PagedLayer = getattr(module, _ATTRIBUTE)
    return layer.k_pool, layer.v_pool


def use_paged_attention(model: PreTrainedModel) -> None:
    """Makes `model` call the modules' backends; raises ModelUnsupported where it does not obey."""
    model.set_attn_implementation(NAME)
    if model.config.get_text_config()._attn_implementation != NAME:
        raise ModelUnsupported(f"{type(model).__name__} does not let its attention be replaced")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers: `[1, heads, T, dim]` in, `[1, T, heads, dim]` out.

    Raises ModelUnsupported for an argument that paged attention would silently drop.
    """
    options = _options(module, query, attention_mask, kwargs)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    return _attend(module, q, k, v, options)[None], None


AttentionInterface.register(NAME, attend)


def _attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions
) -> Tensor:
    if torch.compiler.is_compiling():
        y: Tensor = torch.ops.weft.attend(
            q,
            k,
            v,
            options.sinks,
            getattr(module, _NUMBER),
            options.scaling,
            options.window,
            options.softcap,
        )
        return y
    backend: AttentionBackend | None = getattr(module, _ATTRIBUTE, None)
    if backend is None:
        raise ModelUnsupported(f"{type(module).__name__} attends, but did not in the dry run")
    return backend(module, q, k, v, options)


def _attend_by_number(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    number: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    options = AttentionOptions(scaling, window, softcap, sinks)
    return _attend(numbered(number), q, k, v, options).contiguous()


def _attend_to_nothing(q: Tensor, k: Tensor, v: Tensor, *more: Any) -> Tensor:
    return q.new_empty((*q.shape[:2], v.shape[2]))


LIBRARY.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? sinks, int number, float scaling, int? window, "
    "float? softcap) -> Tensor"
)
LIBRARY.impl("attend", _attend_by_number, "CompositeExplicitAutograd")
torch.library.register_fake("weft::attend", _attend_to_nothing, lib=LIBRARY)


def _options(
    module: nn.Module, query: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> AttentionOptions:
    name = type(module).__name__
    if mask is not None:
        raise ModelUnsupported(f"{name} passes an attention mask of its own")
    if not getattr(module, "is_causal", True) or kwargs.pop("is_causal", None) is False:
        raise ModelUnsupported(f"{name} attends to later tokens too")
    scaling = kwargs.pop("scaling", None)
    options = AttentionOptions(
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=kwargs.pop("sliding_window", None),
        softcap=kwargs.pop("softcap", None),
        sinks=kwargs.pop("s_aux", None),
    )
    for key, value in kwargs.items():
        off = not isinstance(value, Tensor) and not value
        if key not in _WITHOUT_EFFECT and not off:
            raise ModelUnsupported(f"{name} passes {key!r}, which paged attention does not know")
    return options

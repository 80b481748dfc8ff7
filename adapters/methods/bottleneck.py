"""Bottleneck adapters in AdapterHub's format: small networks beside attention and feed-forward.

Pfeiffer's (seq_bn), Houlsby's (double_seq_bn), the parallel (par_bn) and what lies between them
differ in where the networks stand and in what they are given.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TypeGuard

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields, finite_number, invalid
from weft.adapters.methods.names import normal_name
from weft.adapters.operations import Bottleneck
from weft.adapters.plan import AdapterPlan
from weft.adapters.strict_json import Json
from weft.adapters.sublayers import Part, Sublayer, sublayers_of
from weft.kernels.bottleneck import Tap

_LAYERS: Mapping[str, str] = {
    "gemma2": "Gemma2DecoderLayer",
    "gpt2": "GPT2Block",
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "qwen3": "Qwen3DecoderLayer",
}
_PLACES: Mapping[Part, tuple[str, str]] = {
    "attention": ("mh_adapter", "attention_adapters"),
    "feed_forward": ("output_adapter", "output_adapters"),
}
_ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "leaky_relu": "leaky_relu",
    "leakyrelu": "leaky_relu",
    "linear": "identity",
    "mish": "mish",
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_RENAMED_BEFORE_VERSIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_ABOUT_THE_FILE = ("label2id", "model_class", "model_name", "num_labels", "type", "version")
_TRAINING_ONLY = ("dropout", "init_weights", "init_weights_seed", "stochastic_depth")
_OF_PHM_LAYERS = (
    "factorized_phm_W",
    "factorized_phm_rule",
    "hypercomplex_nonlinearity",
    "learn_phm",
    "phm_bias",
    "phm_c_init",
    "phm_dim",
    "phm_init_range",
    "phm_rank",
    "shared_W_phm",
    "shared_phm_rule",
)
_NEVER = {
    "cross_adapter": "the base has no cross-attention",
    "inv_adapter": "invertible adapters of the embedding are not served",
    "ln_after": "a norm after the network is not served",
    "ln_before": "a norm before the network is not served",
    "phm_layer": "Compacter's hypercomplex layers are not served",
    "use_gating": "its gate is a mean over the whole sequence, later tokens included",
}


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """A `Bottleneck` where each adapted sublayer ends, and the head if the file has another one.

    Raises AdapterInvalid where the base's sublayers are not known, or the networks are not such
    that the residual stream stays as it is.
    """
    config, fields = _configs(checkpoint)
    fields.refuse(_NEVER)
    fields.ignore(*_TRAINING_ONLY, *_OF_PHM_LAYERS, "inv_adapter_reduction_factor")
    tap = _tap(fields)
    activation = _activation(fields, versioned="version" in checkpoint.config)
    draft = Draft(checkpoint, tensors, base)
    name = config.get("name")
    if not isinstance(name, str) or not name:
        raise invalid("name", "must be the adapter's name in the file")
    for sublayer in _adapted(_sublayers(config, base), fields):
        if tap == "sum" and not sublayer.added:
            reason = "is not served on a base with a norm between a sublayer and the residual"
            raise invalid("original_ln_before", reason)
        network = _Network(draft, sublayer, name)
        size = _size(fields, sublayer.layer, network.width)
        draft.add(sublayer.output, network.take(size, fields.get("scaling"), activation, tap))
    _take_head(draft, name)
    config.finish()
    fields.finish()
    return draft.plan("bottleneck")


def _configs(checkpoint: Checkpoint) -> tuple[Fields, Fields]:
    """Those of the file and, inside of it, of the networks."""
    config = Fields(checkpoint.config)
    config.ignore(*_ABOUT_THE_FILE)
    inner = config.get("config")
    if not isinstance(inner, dict):
        raise invalid("config", "must be an object")
    fields = Fields(inner)
    architecture = fields.get("architecture")
    if architecture is not None:
        raise invalid("architecture", f"{architecture!r} of AdapterHub is not served")
    return config, fields


def _sublayers(config: Fields, base: BaseModules) -> tuple[Sublayer, ...]:
    """All of the base, which must be of the architecture and width that the file is for."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _LAYERS:
        raise invalid("model_type", f"{model_type!r} is not served; only {', '.join(_LAYERS)} is")
    if _LAYERS[model_type] not in base.types.values():
        raise invalid("model_type", f"{model_type!r} is not the base's: made for another base?")
    sublayers = sublayers_of(base.types)
    width = base[sublayers[0].output].out_features
    if config.get("hidden_size") not in (None, width):
        raise invalid("hidden_size", f"must be {width}, the base's: made for another base?")
    return sublayers


def _adapted(sublayers: tuple[Sublayer, ...], fields: Fields) -> Iterator[Sublayer]:
    """Those which the configuration selects."""
    parts = {part for part, (field, _) in _PLACES.items() if fields.flag(field)}
    omitted = fields.get("leave_out") or []
    if not isinstance(omitted, list) or not all(type(layer) is int for layer in omitted):
        raise invalid("leave_out", "must be a list of layers' numbers")
    return (each for each in sublayers if each.part in parts and each.layer not in omitted)


def _tap(fields: Fields) -> Tap:
    """What the networks are given.

    a: the sublayer's output, h: the residual stream; all that is served becomes a + h + network.
    """
    before, after = fields.flag("original_ln_before"), fields.get("original_ln_after") is not False
    residual = fields.get("residual_before_ln")
    fields.get("adapter_residual_before_ln")  # of ln_after only
    if residual not in (None, True, False):
        raise invalid("residual_before_ln", f"{residual!r} is not served on this base")
    parallel = fields.flag("is_parallel")
    sums = before and residual is False and not parallel
    if after == sums:
        times = "twice" if after else "not at all"
        raise invalid("original_ln_after", f"as it is, the residual stream is added {times}")
    if parallel:
        return "residual"
    return "sum" if before else "output"


def _activation(fields: Fields, *, versioned: bool) -> str:
    name = fields.get("non_linearity")
    if isinstance(name, str):
        name = name.lower() if versioned else _RENAMED_BEFORE_VERSIONS.get(name, name).lower()
        if name in _ACTIVATIONS:
            return _ACTIVATIONS[name]
    raise invalid("non_linearity", f"{name!r} is not served; only {', '.join(_ACTIVATIONS)} is")


def _size(fields: Fields, layer: int, width: int) -> int:
    """Of the network in a layer of this number."""
    factor = fields.get("reduction_factor")
    if isinstance(factor, dict):
        factor = factor.get(str(layer), factor.get("default"))
    if not _is_number(factor) or not 1 / 64 <= factor < math.inf:
        raise invalid("reduction_factor", f"must be a positive number, also of layer {layer}")
    return max(1, int(width // factor))


def _is_number(value: Json) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and type(value) is not bool


class _Network:
    """The tensors of one network in the file."""

    def __init__(self, draft: Draft, sublayer: Sublayer, name: str) -> None:
        self._draft = draft
        self.width = draft.base[sublayer.output].out_features
        self._place = f"{sublayer.of}.{_PLACES[sublayer.part][1]}.adapters.{name}"

    def take(self, size: int, scaling: Json, activation: str, tap: Tap) -> Bottleneck:
        """The operation, `size` wide within."""
        width = self.width
        down = self._tensor("adapter_down.0.weight", size, width)
        down_bias = self._tensor("adapter_down.0.bias", size)
        factors = self._factors(scaling)
        up = self._tensor("adapter_up.weight", width, size)
        up_bias = self._tensor("adapter_up.bias", width)
        if isinstance(factors, Tensor):
            up, up_bias = up * factors[:, None], up_bias * factors
        else:
            up, up_bias = up * factors, up_bias * factors
        return Bottleneck(down, down_bias, up.contiguous(), up_bias, activation, tap)

    def _factors(self, scaling: Json) -> Tensor | float:
        if scaling in ("learned", "channel"):
            return self._tensor("scaling", 1 if scaling == "learned" else self.width)
        return 1.0 if scaling is None else finite_number(scaling, "scaling")

    def _tensor(self, part: str, *shape: int) -> Tensor:
        full = normal_name(f"{self._place}.{part}")
        # Saved from a model without a head, names begin inside of it.
        short = normal_name(f"{self._place.partition('.')[2]}.{part}")
        return self._draft.take(short if short in self._draft.named else full, *shape)


def _take_head(draft: Draft, name: str) -> None:
    """Another head than the base's, which is saved with it or under the adapter's name."""
    head = draft.base.head
    if head is None:
        return
    for saved in (f"{head}.weight", normal_name(f"heads.{name}.0.weight")):
        if saved in draft.named:
            shape = draft.base.owners[head].shapes["weight"]
            draft.replace(head, "weight", draft.named.take(saved, shape))

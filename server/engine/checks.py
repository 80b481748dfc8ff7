"""Which base models can be served exactly, told from their configuration before weights are read.

Each check refuses a kind of model that would fail, or worse, answer wrongly without a word.
Knows no weights; what it lets through is still held against eager attention by the self-test.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from weft.server.engine.unsupported import ModelUnsupported

_PAGED_LAYER_TYPES = {"full_attention", "sliding_attention"}
_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def check_config(config: PreTrainedConfig, max_model_len: int | None = None) -> None:
    """Refuses a model whose architecture cannot run on a paged cache with mixed batches.

    `max_model_len` is the context length asked for, None the longest that the model allows.
    Raises ModelUnsupported.
    """
    check_decoder_only(config)
    model_class = causal_lm_class(config)
    check_attention_interface(model_class)
    check_stateless(model_class)
    check_layer_types(config)
    check_rope(config, max_model_len)
    check_context_length(config, max_model_len)


def causal_lm_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The transformers class of `config`'s causal language model; raises ModelUnsupported."""
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelUnsupported(
            f"transformers has no causal language model of type {config.model_type!r}"
        )
    found: Any = AutoModelForCausalLM._model_mapping[type(config)]
    # Some types map to several classes; the first is what AutoModel takes.
    model_class: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    return model_class


def check_decoder_only(config: PreTrainedConfig) -> None:
    """An encoder's attention is not causal, and its output is no function of a paged cache."""
    if config.is_encoder_decoder:
        raise ModelUnsupported(f"{config.model_type} is an encoder-decoder model")


def check_attention_interface(model_class: type[PreTrainedModel]) -> None:
    """Models with attention code of their own (ALiBi among them) would ignore the paged cache."""
    if not model_class._can_set_attn_implementation():
        raise ModelUnsupported(
            f"{model_class.__name__} computes attention in its own code, "
            "which cannot be replaced by paged attention"
        )


def check_stateless(model_class: type[PreTrainedModel]) -> None:
    """A recurrent state lives outside the paged cache and would leak between sequences."""
    if model_class._is_stateful:
        raise ModelUnsupported(
            f"{model_class.__name__} keeps a recurrent state, which a paged cache cannot hold"
        )


def check_layer_types(config: PreTrainedConfig) -> None:
    """Convolution, linear and chunked attention layers mix rows in ways only a mask could stop."""
    layer_types = getattr(config.get_text_config(), "layer_types", None) or []
    unknown = sorted(set(layer_types) - _PAGED_LAYER_TYPES)
    if unknown:
        raise ModelUnsupported(
            f"{config.model_type} has layers of type {', '.join(unknown)}; "
            "only full and sliding attention can be paged"
        )


def check_rope(config: PreTrainedConfig, max_model_len: int | None) -> None:
    """Dynamic rope follows the longest position of a batch: one request would change the others.

    Allowed where no request can be so long that the frequencies move.
    """
    text_config = config.get_text_config()
    for parameters in _rope_parameters(getattr(text_config, "rope_parameters", None)):
        rope_type = parameters.get("rope_type", "default")
        if rope_type not in _BATCH_DEPENDENT_ROPE:
            continue
        limit = parameters.get("original_max_position_embeddings") or position_limit(config)
        wanted = max_model_len or position_limit(config)
        if limit is None or wanted is None or wanted > limit:
            raise ModelUnsupported(
                f"rope type {rope_type!r} changes all requests of a batch with the longest one"
                + (
                    f" beyond {limit} tokens: set --max-model-len to {limit} or less"
                    if limit
                    else ""
                )
            )


def check_context_length(config: PreTrainedConfig, max_model_len: int | None) -> None:
    """Positions beyond the trained ones do not exist, or mean nothing to the model."""
    limit = position_limit(config)
    if max_model_len is not None and limit is not None and max_model_len > limit:
        raise ModelUnsupported(
            f"--max-model-len {max_model_len} is beyond the model's {limit} positions"
        )


def position_limit(config: PreTrainedConfig) -> int | None:
    """The number of positions that the model knows; None where its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _rope_parameters(parameters: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The parameter sets of `rope_parameters`, which may be nested by layer type."""
    if parameters:
        yield parameters
        for nested in parameters.values():
            if isinstance(nested, Mapping):
                yield nested

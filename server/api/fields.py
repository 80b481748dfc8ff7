"""The request fields that chat and text completions share, and what they mean to the engine."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from weft.server.api.body import RequestBody
from weft.server.engine.messages import Sampling
from weft.server.errors import invalid

MAX_CHOICES = 8
MAX_LOGPROBS = 20
# A sampler keeps at least one token at any top_p above zero; zero itself means the same.
_SMALLEST_TOP_P = 1e-6


def only(*allowed: Any) -> BeforeValidator:
    """Accepts a field only where its value asks for nothing that this server does not do."""
    words = " or ".join(str(item) for item in allowed)

    def check(value: Any) -> Any:
        if not any(type(value) is type(item) and value == item for item in allowed):
            reason = f"only {words}" if words else ""
            raise PydanticCustomError("unsupported", "{reason}", {"reason": reason})
        return value

    return BeforeValidator(check)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _token_keys(biases: dict[str, float]) -> dict[str, float]:
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in biases):
        raise PydanticCustomError("token_keys", "keys should be token ids")
    return biases


Absent = Annotated[Any, only()]
Ignored = Annotated[Any, Field(description="Accepted and ignored.")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[str, Bias], Field(max_length=1024), AfterValidator(_token_keys)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Field(max_length=16),
    BeforeValidator(_listed),
]


class StreamOptions(RequestBody):
    """How a stream reports usage."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Ignored = None


class GenerationFields(RequestBody):
    """Sampling, stopping and streaming: OpenAI's fields and vLLM's extras."""

    model: str | None = None
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    logit_bias: LogitBias = Field({})
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31 - 1)
    min_p: float = Field(0.0, ge=0, le=1)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stop: Stops = Field([])
    stop_token_ids: list[TokenId] = Field([], max_length=256)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False
    user: str | None = Field(
        None, max_length=512, description="Whose request it is: a split alias leads it one way."
    )

    def sampling(self, *, max_tokens: int, vocab_size: int, logprobs: int | None) -> Sampling:
        """What the engine is told; raises ApiError for token ids that the model does not have.

        logprobs: how many alternatives to report per token; None for no log-probabilities
        """
        if "stream_options" in self.model_fields_set and not self.stream:
            raise invalid("stream_options", "needs stream to be true")
        biases = {int(token): bias for token, bias in self.logit_bias.items()}
        for name, tokens in (("logit_bias", biases), ("stop_token_ids", self.stop_token_ids)):
            if any(token >= vocab_size for token in tokens):
                raise invalid(name, f"holds a token id that is not below {vocab_size}")
        if self.min_tokens > max_tokens:
            raise invalid("min_tokens", f"exceeds the {max_tokens} tokens that the answer may have")
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=max(self.top_p, _SMALLEST_TOP_P),
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=biases,
            seed=self.seed,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )

"""POST /v1/completions: its schema, its preparation and its format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from msgspec import structs
from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from weft.server.api.answer import Answer, Json, Writer
from weft.server.api.body import describes, json_body
from weft.server.api.choice import Delta, WholeChoice
from weft.server.api.fields import MAX_LOGPROBS, Absent, GenerationFields
from weft.server.api.generation import Generation, Work, answer_length
from weft.server.api.logprobs import text_logprobs
from weft.server.engine.messages import TokenLogprobs
from weft.server.errors import invalid, unsupported
from weft.server.router import Target
from weft.server.text import Text

router = APIRouter()
DEFAULT_MAX_TOKENS = 16
Prompt = str | list[int]


def _prompts(value: Any) -> list[Prompt]:
    """One prompt or many, as text or as token ids, always as a list of prompts."""
    if isinstance(value, str) or (value and _is_tokens(value)):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(item and _is_tokens(item) for item in value):
            return value
    raise PydanticCustomError(
        "prompt",
        "should be a text, a list of texts, a list of token ids or a list of lists of token ids, "
        "and not empty",
    )


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


_TOKENS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Prompts = Annotated[
    list[Any],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                _TOKENS_SCHEMA,
                {"type": "array", "items": _TOKENS_SCHEMA, "minItems": 1},
            ]
        }
    ),
]


class CompletionRequest(GenerationFields):
    """OpenAI's text completion request."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = None
    suffix: Absent = None


@dataclass(frozen=True)
class Echo:
    """A prompt as an answer repeats it."""

    text: str
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, prompt: Prompt, tokens: tuple[int, ...], text: Text) -> "Echo":
        """tokens: the prompt's, where in its text each begins being found by decoding them."""
        detokenizer = text.detokenizer()
        offsets: list[int] = []
        decoded = ""
        for token in tokens:
            offsets.append(len(decoded))
            decoded += detokenizer.push((token,))
        decoded += detokenizer.end()
        return cls(prompt if isinstance(prompt, str) else decoded, tokens, tuple(offsets))


class CompletionWriter(Writer):
    """OpenAI's `text_completion`; its stream's chunks look the same."""

    def __init__(
        self,
        target: Target,
        request_id: str,
        body: CompletionRequest,
        text: Text,
        echoes: Sequence[Echo],
    ) -> None:
        super().__init__(target, f"cmpl-{request_id}")
        self._body = body
        self._token_bytes = text.token_bytes
        self._echoes = echoes
        self._opened: set[int] = set()

    def whole(self, choices: Sequence[WholeChoice], generation: Generation) -> Json:
        """Choices with their texts."""
        return self.chunk([self._choice(choice, generation, opens=True) for choice in choices])

    def chunks(self, delta: Delta, generation: Generation) -> Iterator[Json]:
        """A choice's text as it comes; before it, with `echo`, its prompt."""
        opens = delta.index not in self._opened
        self._opened.add(delta.index)
        told = self._body.logprobs is not None or self._body.return_token_ids
        if delta.text or delta.finish or (told and delta.tokens) or (opens and self._body.echo):
            yield self.chunk([self._choice(delta, generation, opens)])

    def chunk(self, choices: list[Json]) -> Json:
        """A chunk, or the whole answer, with these choices."""
        return self.envelope("text_completion", choices)

    def _choice(self, part: WholeChoice | Delta, generation: Generation, opens: bool) -> Json:
        number = part.index // generation.work.n
        echo = self._echoes[number] if self._body.echo else None
        choice: Json = {
            "index": part.index,
            "text": echo.text + part.text if echo and opens else part.text,
            "logprobs": None,
            "finish_reason": part.finish,
        }
        if self._body.logprobs is not None:
            choice["logprobs"] = self._logprobs(part, generation, number, echo, opens)
        if self._body.return_token_ids:
            if opens:
                choice["prompt_token_ids"] = list(generation.work.prompts[number])
            choice["token_ids"] = list(part.tokens)
        return choice

    def _logprobs(
        self,
        part: WholeChoice | Delta,
        generation: Generation,
        number: int,
        echo: Echo | None,
        opens: bool,
    ) -> Json:
        logprobs: list[TokenLogprobs | None] = list(part.logprobs)
        tokens, offsets = list(part.tokens), list(part.offsets)
        if echo:
            offsets = [len(echo.text) + offset for offset in offsets]
            if opens:
                logprobs = [*generation.prompt_logprobs.get(number, ()), *logprobs]
                tokens = [*echo.tokens, *tokens]
                offsets = [*echo.offsets, *offsets]
        return text_logprobs(logprobs, tokens, offsets, self._token_bytes)


class CompletionAnswer(Answer):
    """The answer to one text completion request."""

    def __init__(self, request: Request, body: CompletionRequest) -> None:
        super().__init__(request, body)
        self._completion = body

    @property
    def sequences(self) -> int:
        """`n` for each prompt."""
        return self._completion.n * len(self._completion.prompt)

    async def prepare(self, target: Target) -> tuple[Work, Writer]:
        """Tokenises the prompts and checks that they fit; raises ApiError."""
        body, text, info = self._completion, self.services.text, self.services.engine.info
        if body.best_of not in (None, body.n):
            raise unsupported("best_of", "only the value of n")
        length = sum(map(len, body.prompt))
        tenant = self._request.state.tenant
        prompts = await self.services.reading(tenant, length, self._tokenize)
        longest = max(len(prompt) for prompt in prompts)
        room = answer_length(longest, body.max_tokens, self.room(target), "prompt")
        max_tokens = min(room, DEFAULT_MAX_TOKENS) if body.max_tokens is None else room
        sampling = body.sampling(
            max_tokens=max(max_tokens, 1),
            vocab_size=info.vocab_size,
            logprobs=body.logprobs,
        )
        if body.echo and body.logprobs is not None:
            sampling = structs.replace(sampling, prompt_logprobs=body.logprobs)
        pairs = zip(body.prompt, prompts, strict=True) if body.echo else ()
        echoes = [Echo.of(prompt, tokens, text) for prompt, tokens in pairs]
        work = Work(prompts, sampling, body.n, body.stop, silent=max_tokens == 0)
        return work, CompletionWriter(target, self.request_id, body, text, echoes)

    def _tokenize(self) -> list[tuple[int, ...]]:
        text, vocab_size = self.services.text, self.services.engine.info.vocab_size
        prompts: list[tuple[int, ...]] = []
        for prompt in self._completion.prompt:
            tokens = text.encode(prompt) if isinstance(prompt, str) else prompt
            if not tokens:
                raise invalid("prompt", "is empty")
            if min(tokens) < 0 or max(tokens) >= vocab_size:
                raise invalid("prompt", f"holds a token id outside 0 to {vocab_size - 1}")
            prompts.append(tuple(tokens))
        return prompts


@router.post("/v1/completions", openapi_extra=describes(CompletionRequest))
async def create_completion(
    request: Request, body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))]
) -> Response:
    """Continues texts, as OpenAI's route does."""
    return CompletionAnswer(request, body)

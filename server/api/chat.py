"""POST /v1/chat/completions: its schema, its preparation and its format."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Discriminator, Field, Tag

from weft.server.api.answer import Answer, Json, Writer
from weft.server.api.body import RequestBody, describes, json_body
from weft.server.api.choice import Delta, WholeChoice
from weft.server.api.fields import MAX_LOGPROBS, Absent, GenerationFields, Ignored, only
from weft.server.api.generation import Generation, Work, answer_length
from weft.server.api.logprobs import chat_logprobs
from weft.server.errors import invalid
from weft.server.router import Target
from weft.server.text import ChatTemplateError, Text

router = APIRouter()


class TextPart(RequestBody):
    """A part of a message's content."""

    type: Annotated[str, only("text")]
    text: str


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Tag("<parts>")],
    Discriminator(lambda value: "<parts>" if isinstance(value, list) else "<text>"),
]


class ChatMessage(RequestBody):
    """One turn of the conversation; the fields of OpenAI's own answers are taken back."""

    role: Annotated[str, only("system", "developer", "user", "assistant")]
    content: Content
    name: str | None = Field(None, max_length=64)
    annotations: Annotated[Any, only([])] = None
    tool_calls: Annotated[Any, only([])] = None
    audio: Absent = None
    function_call: Absent = None
    refusal: Absent = None

    def plain(self) -> dict[str, str]:
        """What a chat template reads."""
        parts = self.content
        content = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return {"role": self.role, "content": content} | ({"name": self.name} if self.name else {})


class ChatCompletionRequest(GenerationFields):
    """OpenAI's chat request; what this server does not do is refused by name."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)

    metadata: Ignored = None
    prompt_cache_key: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    store: Annotated[Any, only(False)] = None
    modalities: Annotated[Any, only(["text"])] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, only(True, False)] = None
    audio: Absent = None
    prediction: Absent = None
    reasoning_effort: Absent = None
    verbosity: Absent = None
    web_search_options: Absent = None

    @property
    def answer_tokens(self) -> int | None:
        """The longest answer asked for; raises ApiError where it was asked for twice."""
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise invalid("max_tokens", "is the same as max_completion_tokens; give one of them")
        return self.max_completion_tokens or self.max_tokens


class ChatWriter(Writer):
    """OpenAI's `chat.completion` and `chat.completion.chunk`."""

    def __init__(
        self, target: Target, request_id: str, body: ChatCompletionRequest, text: Text
    ) -> None:
        super().__init__(target, f"chatcmpl-{request_id}")
        self._body = body
        self._token_bytes = text.token_bytes
        self._opened: set[int] = set()

    def whole(self, choices: Sequence[WholeChoice], generation: Generation) -> Json:
        """Choices with their messages."""
        written = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
            }
            | self._details(choice)
            for choice in choices
        ]
        return self.envelope("chat.completion", written) | self._prompt(generation)

    def chunks(self, delta: Delta, generation: Generation) -> Iterator[Json]:
        """First a choice's role, then its text as it comes, at last why it ended."""
        if not self._opened:
            yield self._opening(delta.index) | self._prompt(generation)
        elif delta.index not in self._opened:
            yield self._opening(delta.index)
        self._opened.add(delta.index)
        told = self._body.logprobs or self._body.return_token_ids
        if delta.text or delta.finish or (told and delta.tokens):
            content = {"content": delta.text} if delta.text or not delta.finish else {}
            choice = {"index": delta.index, "delta": content}
            yield self.chunk([choice | self._details(delta)])

    def chunk(self, choices: list[Json]) -> Json:
        """A chunk with these choices."""
        return self.envelope("chat.completion.chunk", choices)

    def _opening(self, index: int) -> Json:
        delta = {"role": "assistant", "content": "", "refusal": None}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self.chunk([choice])

    def _prompt(self, generation: Generation) -> Json:
        wanted = self._body.return_token_ids
        return {"prompt_token_ids": list(generation.work.prompts[0])} if wanted else {}

    def _details(self, part: WholeChoice | Delta) -> Json:
        details: Json = {"logprobs": None, "finish_reason": part.finish}
        if self._body.logprobs:
            details["logprobs"] = chat_logprobs(part.logprobs, self._token_bytes)
        if self._body.return_token_ids:
            details["token_ids"] = list(part.tokens)
        return details


def length_of(messages: Sequence[Mapping[str, str]]) -> int:
    """Of all texts in a conversation, in characters."""
    return sum(len(text) for message in messages for text in message.values())


class ChatAnswer(Answer):
    """The answer to one chat request."""

    def __init__(self, request: Request, body: ChatCompletionRequest) -> None:
        super().__init__(request, body)
        self._chat = body

    @property
    def sequences(self) -> int:
        """As many as `n`."""
        return self._chat.n

    async def prepare(self, target: Target) -> tuple[Work, Writer]:
        """Renders the messages with the base's template; raises ApiError."""
        body, text, info = self._chat, self.services.text, self.services.engine.info
        messages = [message.plain() for message in body.messages]
        try:
            length, tenant = length_of(messages), self._request.state.tenant
            prompt = await self.services.reading(tenant, length, text.encode_chat, messages)
        except ChatTemplateError as error:
            raise invalid("messages", str(error)) from error
        if not prompt:
            raise invalid("messages", "the chat template makes an empty prompt of them")
        if body.top_logprobs and not body.logprobs:
            raise invalid("top_logprobs", "needs logprobs to be true")
        max_tokens = answer_length(len(prompt), body.answer_tokens, self.room(target), "messages")
        if body.answer_tokens is None:
            max_tokens = self.afforded(len(prompt), max_tokens)
        sampling = body.sampling(
            max_tokens=max_tokens,
            vocab_size=info.vocab_size,
            logprobs=body.top_logprobs if body.logprobs else None,
        )
        writer = ChatWriter(target, self.request_id, body, text)
        return Work((tuple(prompt),), sampling, body.n, body.stop), writer


@router.post("/v1/chat/completions", openapi_extra=describes(ChatCompletionRequest))
async def create_chat_completion(
    request: Request,
    body: Annotated[ChatCompletionRequest, Depends(json_body(ChatCompletionRequest))],
) -> Response:
    """Continues a conversation, as OpenAI's route does."""
    return ChatAnswer(request, body)

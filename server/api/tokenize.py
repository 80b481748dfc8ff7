"""POST /tokenize and /detokenize, with vLLM's bodies and answers."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from weft.server.api.body import RequestBody, describes, json_body
from weft.server.api.chat import ChatMessage, length_of
from weft.server.api.fields import TokenId
from weft.server.api.json_response import json_response
from weft.server.errors import invalid
from weft.server.services import services_of
from weft.server.text import ChatTemplateError, Text

router = APIRouter()


class TokenizeRequest(RequestBody):
    """A text (`prompt`) or a conversation (`messages`)."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(RequestBody):
    """Token ids."""

    model: str | None = None
    tokens: list[TokenId]


@router.post("/tokenize", openapi_extra=describes(TokenizeRequest))
async def tokenize(
    request: Request, body: Annotated[TokenizeRequest, Depends(json_body(TokenizeRequest))]
) -> Response:
    """The token ids that a completion of this prompt, or a chat of these messages, begins with."""
    services, state = services_of(request), request.state
    text = services.text
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "give either prompt or messages")
    with services.router.target(
        state.tenant, request.headers, body.model, state.request_id
    ) as target:
        if body.prompt is not None:
            tokens = await services.reading(
                state.tenant,
                len(body.prompt),
                text.encode,
                body.prompt,
                add_special_tokens=body.add_special_tokens,
            )
        else:
            messages = [message.plain() for message in body.messages or ()]
            try:
                tokens = await services.reading(
                    state.tenant,
                    length_of(messages),
                    text.encode_chat,
                    messages,
                    add_generation_prompt=body.add_generation_prompt,
                )
            except ChatTemplateError as error:
                raise invalid("messages", str(error)) from error
    names = None
    if body.return_token_strs:
        names = await services.reading(state.tenant, len(tokens), text.token_names, tokens)
    answer: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": services.engine.info.max_model_len - target.virtual_tokens,
        "tokens": tokens,
        "token_strs": names,
    }
    return json_response(answer)


@router.post("/detokenize", openapi_extra=describes(DetokenizeRequest))
async def detokenize(
    request: Request, body: Annotated[DetokenizeRequest, Depends(json_body(DetokenizeRequest))]
) -> Response:
    """The text of token ids, special tokens included."""
    services, state = services_of(request), request.state
    with services.router.target(state.tenant, request.headers, body.model, state.request_id):
        prompt = await services.reading(
            state.tenant, len(body.tokens), _written, services.text, body.tokens
        )
    return json_response({"prompt": prompt})


def _written(text: Text, tokens: list[int]) -> str:
    if not all(map(text.knows, set(tokens))):
        raise invalid("tokens", "holds an id that the vocabulary does not have")
    return text.decode(tokens, skip_special_tokens=False)

"""The base model's tokenizer and chat template: text and messages to token ids and back.

Templates and tokenizers come from the base only, never from an adapter or a request.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from weft.server.detokenizer import Detokenizer, TokenBytes, TokenizerUnusable

log = logging.getLogger("weft.text")


class ChatTemplateError(Exception):
    """Messages that the chat template does not render; the message may be shown to the client."""


class Text:
    """One tokenizer, ready to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes a transformers tokenizer backed by the `tokenizers` library."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TokenizerUnusable("it is not one of the tokenizers library")
        self._tokenizer = tokenizer
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.token_bytes = TokenBytes(backend)
        self.chat_template = _template(tokenizer.chat_template)

    @classmethod
    def load(cls, model: str) -> "Text":
        """Reads the tokenizer of a local folder or hub id; raises TokenizerUnusable."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            log.debug("loading the tokenizer failed", exc_info=True)
            raise TokenizerUnusable(
                f"{model} holds no tokenizer that can be read (tokenizer.json and "
                f"tokenizer_config.json): {str(error).splitlines()[0] if str(error) else error!r}"
            ) from None
        return cls(tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the tokens that the tokenizer puts around one."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation, open for the assistant's turn; raises ChatTemplateError."""
        if self.chat_template is None:
            raise ChatTemplateError("this model has no chat template; use /v1/completions")
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                [self._spoken(message) for message in messages],
                chat_template=self.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except Exception as error:
            # Only what a template raises on purpose is meant for the one who wrote the messages.
            meant = error.message if type(error) is TemplateError else None
            raise ChatTemplateError(meant or "the model's chat template refuses them") from error
        return self.encode(rendered, add_special_tokens=False)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence."""
        text: str = self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(self) -> Detokenizer:
        """A decoder for one answer, which continues its prompt."""
        return Detokenizer(self.token_bytes)

    def token_names(self, tokens: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary spells them."""
        return [self._backend.id_to_token(token) or "" for token in tokens]

    def knows(self, token: int) -> bool:
        """Whether the vocabulary has this id."""
        return self._backend.id_to_token(token) is not None

    def _spoken(self, message: Mapping[str, str]) -> Mapping[str, str]:
        """`developer` is OpenAI's newer word for `system`, which few templates know."""
        if message["role"] == "developer" and "developer" not in (self.chat_template or ""):
            return {**message, "role": "system"}
        return message


def _template(template: str | Mapping[str, str] | None) -> str | None:
    return template if isinstance(template, str | None) else template.get("default")

"""The base model's tokenizer and chat template: text and messages to token ids and back.

Templates and tokenizers come from the base only, never from an adapter or a request.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from weft.server.detokenizer import Detokenizer, TokenBytes, TokenizerUnusable

_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


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
        try:
            tokenizer = _tokenizer_class(Path(model)).from_pretrained(model)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), repr(error))
            raise TokenizerUnusable(
                f"{model} holds no tokenizer that can be read (tokenizer.json and "
                f"tokenizer_config.json): {reason}"
            ) from error
        return cls(tokenizer)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """All tokens and their ids."""
        found: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return found

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the tokens that the tokenizer puts around one."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation, open for the assistant's turn; raises ChatTemplateError."""
        rendered = self.render_chat(messages, add_generation_prompt=add_generation_prompt)
        return self.encode(rendered, add_special_tokens=False)

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the chat template writes it; raises ChatTemplateError."""
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
        return rendered

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


def _tokenizer_class(folder: Path) -> Any:
    """The class that reads a tokenizer.

    AutoTokenizer chooses rightly for every model, but imports torch for it: 4 seconds and 240 MiB
    that a folder which names the plain class itself spares this process.
    """
    config = folder / "tokenizer_config.json"
    complete = config.is_file() and (folder / "tokenizer.json").is_file()
    if complete and json.loads(config.read_bytes()).get("tokenizer_class") in _PLAIN:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _template(template: str | Mapping[str, str] | None) -> str | None:
    return template if isinstance(template, str | None) else template.get("default")

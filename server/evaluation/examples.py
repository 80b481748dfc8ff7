"""What a line of held-out data says: an example, checked as strictly as a request is."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from weft.server.api.body import RequestBody
from weft.server.evaluation.outcome import compile_pattern


class Message(RequestBody):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


def _usable(pattern: str) -> str:
    compile_pattern(pattern)
    return pattern


class Example(RequestBody):
    """A prompt, or the messages of a conversation, and what should come after.

    general: it shows what was forgotten, not what was learnt
    regex: found anywhere in a right answer   as_json: a right answer is valid JSON
    """

    prompt: str | None = Field(None, min_length=1)
    messages: list[Message] | None = Field(None, min_length=1, validate_default=True)
    completion: str = Field(min_length=1)
    general: bool = False
    regex: Annotated[str, AfterValidator(_usable)] | None = None
    as_json: bool = Field(False, alias="json")

    @field_validator("messages")
    @classmethod
    def _one_of_both(
        cls, messages: list[Message] | None, info: ValidationInfo
    ) -> list[Message] | None:
        if "prompt" in info.data and (messages is None) == (info.data["prompt"] is None):
            raise ValueError("give either prompt or messages")
        return messages

    @property
    def asks_for_answer(self) -> bool:
        """Whether a greedy answer is looked at, and not only the completion's probability."""
        return not self.general or self.regex is not None or self.as_json

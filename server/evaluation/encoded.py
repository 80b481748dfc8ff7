"""An example as token ids: what is scored and what is answered. Knows no engine."""

from dataclasses import dataclass

from weft.server.errors import ApiError, ErrorCode, invalid
from weft.server.evaluation.examples import Example
from weft.server.text import ChatTemplateError, Text

_SPARE_TOKENS = 16


@dataclass(frozen=True)
class Encoded:
    """The tokens of one example.

    prompt: what an answer continues   whole: prompt and completion   start: where the completion
    begins in `whole`   answer: most tokens of an answer
    """

    example: Example
    prompt: tuple[int, ...]
    whole: tuple[int, ...]
    start: int
    answer: int


def encode(example: Example, text: Text, limit: int) -> Encoded:
    """Tokenises an example for a context of `limit` tokens; raises ApiError naming its field.

    Where a token reaches over the border of prompt and completion it counts as completion. An
    answer may have twice the completion's tokens and some more: one that is right is not longer.
    """
    if example.messages is None:
        field, prompt, special = "prompt", example.prompt or "", True
    else:
        field, prompt, special = "messages", _rendered(example, text), False
    before = text.encode(prompt, add_special_tokens=special)
    whole = text.encode(prompt + example.completion, add_special_tokens=special)
    start = _common(before, whole)
    scored = len(whole) - max(start, 1)
    if not before or scored < 1:
        raise invalid(field, "has no tokens that a completion could follow")
    if max(len(whole), len(before) + 1) > limit:
        values = {"limit": limit, "prompt": len(before), "answer": len(whole) - len(before)}
        raise ApiError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, param=field, values=values)
    answer = min(2 * scored + _SPARE_TOKENS, limit - len(before))
    return Encoded(example, tuple(before), tuple(whole), max(start, 1), answer)


def _rendered(example: Example, text: Text) -> str:
    messages = [message.model_dump() for message in example.messages or ()]
    try:
        return text.render_chat(messages)
    except ChatTemplateError as error:
        raise invalid("messages", str(error)) from error


def _common(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))

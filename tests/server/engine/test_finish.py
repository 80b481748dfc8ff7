"""When a sequence is done."""

import pytest
from scheduling import request

from weft.server.engine.finish import FinishRules
from weft.server.engine.sequence import Finish, Sequence

EOS, STOP = 0, 9
RULES = FinishRules(frozenset({EOS}), max_model_len=20)


def reason(*generated: int, prompt: int = 4, **sampling: object) -> Finish | None:
    asked = request("r", prompt, **({"max_tokens": 5} | sampling))  # type: ignore[arg-type]
    return RULES.finish_reason(Sequence(asked, 0, 0, [*asked.prompt, *generated]))


@pytest.mark.parametrize(
    ("generated", "sampling", "expected"),
    [
        ((1, 2), {}, None),
        ((1, EOS), {}, Finish("stop", stop_token=EOS)),
        ((1, EOS), {"ignore_eos": True}, None),
        ((1, EOS), {"ignore_eos": True, "stop_token_ids": (EOS,)}, Finish("stop", stop_token=EOS)),
        ((1, STOP), {"stop_token_ids": (8, STOP)}, Finish("stop", stop_token=STOP)),
        ((STOP, 1), {"stop_token_ids": (STOP,)}, None),
        ((1, EOS), {"min_tokens": 3}, None),
        ((1, 2, EOS), {"min_tokens": 3}, Finish("stop", stop_token=EOS)),
        ((1, STOP), {"min_tokens": 3, "stop_token_ids": (STOP,)}, None),
        ((1, 2, 3, 4, 5), {}, Finish("length")),
        ((1, 2, 3, 4, EOS), {}, Finish("stop", stop_token=EOS)),
        ((1, 2, 3, 4, EOS), {"min_tokens": 9}, Finish("length")),
        ((), {"max_tokens": 0}, Finish("length")),
        ((), {}, None),
    ],
)
def test_eos_stop_tokens_and_length(
    generated: tuple[int, ...], sampling: dict[str, object], expected: Finish | None
) -> None:
    assert reason(*generated, **sampling) == expected


def test_the_models_length_ends_what_would_go_on() -> None:
    assert reason(1, 2, prompt=17, max_tokens=50) is None
    assert reason(1, 2, 3, prompt=17, max_tokens=50) == Finish("length")


def test_a_prompt_that_ends_in_eos_does_not_end_its_answer() -> None:
    asked = request("r", (1, EOS), max_tokens=5)
    assert RULES.finish_reason(Sequence(asked, 0, 0, list(asked.prompt))) is None

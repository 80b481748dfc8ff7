"""`weft verify`: an adapter through a yardstick and through weft, on this machine, side by side."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from weft.adapters.errors import AdapterInvalid
from weft.server.cli.console import Refusal, err, out, print_rows
from weft.server.cli.inspect import Adapter, Base, base_folder

if TYPE_CHECKING:
    from weft.server.verification import Compared

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Dear customer, thank you for your message. We",
    "def add(a, b):\n    return",
    "1, 1, 2, 3, 5, 8,",
)


def verify(
    adapter: Adapter,
    base: Base,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt to try; repeatable. Some are built in.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate for each.")] = 16,
    device: Annotated[str, typer.Option(help="Where to run: auto, cuda or cpu.")] = "auto",
) -> None:
    """Compares weft with peft in float32; exit code 1 if a single token differs.

    AdapterHub's adapters are compared with a plain computation of their formulas.
    """
    folder = base_folder(base)
    from weft.server.detokenizer import TokenizerUnusable
    from weft.server.engine.unsupported import ModelUnsupported
    from weft.server.text import Text

    # peft imports bitsandbytes, which recommends a package that nothing here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from weft.server.verification import PeftFailed, verify_adapter, yardstick

    prompts = tuple(prompt or PROMPTS)
    try:
        tokens = [tuple(ids) for ids in map(Text.load(str(folder)).encode, prompts)]
        beside = yardstick(adapter)
        with err.status(f"{adapter.name}: computing with weft, then with {beside.split(' (')[0]}"):
            answers = verify_adapter(adapter, folder, tokens, max_tokens, device)
    except AdapterInvalid as refusal:
        raise Refusal(f"{adapter}: refused: {refusal}") from None
    except PeftFailed as failure:
        raise Refusal(f"{adapter}: peft: {failure}") from None
    except (ModelUnsupported, TokenizerUnusable) as refusal:
        raise Refusal(f"--base: {refusal}", 2) from None
    out.print(f"compared with {beside}")
    heading = ("prompt", "equal tokens", "largest logit difference")
    print_rows([heading, *map(_row, prompts, answers)])
    differing = sum(answer.actual != answer.expected for answer in answers)
    largest = max(answer.difference for answer in answers)
    verdict = f"tokens differ for {differing} of {len(answers)}" if differing else "tokens agree"
    out.print(f"largest logit difference {largest:.2e}; {verdict}")
    raise typer.Exit(1 if differing else 0)


def _row(prompt: str, answer: "Compared") -> tuple[str, ...]:
    shown = repr(prompt if len(prompt) <= 30 else f"{prompt[:29]}…")
    tokens = len(answer.expected)
    return shown, f"{answer.equal} of {tokens}", f"{answer.difference:.2e}"

"""`weft verify`: the adapter through peft and through weft, on this machine, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from weft.adapters.errors import AdapterInvalid
from weft.server.base_folder import BaseNotFound, find_base
from weft.server.cli.console import Refusal, err, out
from weft.server.cli.inspect import Adapter, Base

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
    """Compares weft with peft in float32; exit code 1 if a single token differs."""
    from weft.server.detokenizer import TokenizerUnusable
    from weft.server.engine.checks import ModelUnsupported
    from weft.server.text import Text as Tokenizer
    from weft.server.verification import PeftFailed, verify_adapter

    prompts = tuple(prompt or PROMPTS)
    try:
        folder = find_base(base)
        tokens = [tuple(ids) for ids in map(Tokenizer.load(str(folder)).encode, prompts)]
        with err.status(f"{adapter.name}: computing with peft, then with weft"):
            answers = verify_adapter(adapter, folder, tokens, max_tokens, device)
    except AdapterInvalid as refusal:
        raise Refusal(f"{adapter}: refused: {refusal}") from None
    except PeftFailed as failure:
        raise Refusal(f"{adapter}: peft: {failure}") from None
    except (BaseNotFound, ModelUnsupported, TokenizerUnusable) as refusal:
        raise Refusal(f"--base: {refusal}", 2) from None
    out.print(_table(prompts, answers))
    differing = sum(answer.actual != answer.expected for answer in answers)
    largest = max(answer.difference for answer in answers)
    verdict = f"tokens differ for {differing} of {len(answers)}" if differing else "tokens agree"
    out.print(f"largest logit difference {largest:.2e}; {verdict}")
    raise typer.Exit(1 if differing else 0)


def _table(prompts: Sequence[str], answers: "Sequence[Compared]") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("prompt", no_wrap=True)
    for heading in ("tokens", "equal", "largest logit difference"):
        table.add_column(heading, justify="right")
    for text, answer in zip(prompts, answers, strict=True):
        shown = repr(text if len(text) <= 30 else f"{text[:29]}…")
        difference = f"{answer.difference:.2e}"
        table.add_row(Text(shown), str(len(answer.expected)), str(answer.equal), difference)
    return table

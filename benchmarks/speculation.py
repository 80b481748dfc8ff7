"""Do drafts from the text itself pay, and cost nothing where they do not? Both sides, in turns.

    python benchmarks/speculation.py

One engine in this process, whose drafting is switched between turns. Texts that repeat what was
asked and texts that repeat nothing; 1, 4 and 32 sequences at a time, each one followed by the next.
Writes results/speculation-MODEL.json and prints the table.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import machine
import torch
import typer
import workload
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoTokenizer

from weft.adapters.blend import alone
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext
from weft.server.demo.corpus import held_out_requests
from weft.server.engine.drafting import Drafting
from weft.server.engine.engine import Engine
from weft.server.engine.messages import EngineConfig, Generate, Sampling, Tokens
from weft.server.engine.step_plan import Scheduled, StepPlan

DEMO_ADAPTERS = workload.EMBEDDED.parent / "adapters"
MOST = 32
PROMPT_TOKENS = 32
console = Console(width=140)


Prompts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Text:
    """What is generated: after which prompts, in turn, by which of the demo's adapters, if any."""

    name: str
    prompts: Prompts
    sampling: Sampling
    adapter: str | None = None


@dataclass(frozen=True)
class Subject:
    """A base and the texts that it is to write."""

    base: workload.Base
    texts: tuple[Text, ...]


def embedded() -> Subject:
    """The demo: second answers of a chat, first answers, and words at random."""
    base = workload.embedded()
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    examples = json.loads((workload.EMBEDDED.parent / "examples.json").read_text())

    def prompt(*said: str) -> tuple[int, ...]:
        roles = itertools.cycle(("user", "assistant"))
        chat = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        found = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        return tuple(found)

    def second(adapter: str, apart: int) -> Prompts:
        """Chats whose first answer is known; the second question is one that comes later."""
        later = examples[apart:] + examples[:apart]
        return tuple(
            prompt(one["prompt"], one["replies"][adapter], other["prompt"])
            for one, other in zip(examples, later, strict=True)
        )

    answer = Sampling(max_tokens=96, temperature=0.0)
    firsts = tuple(prompt(request.prompt) for request in held_out_requests(96, seed=5))
    wild = Sampling(max_tokens=48, temperature=4.0, ignore_eos=True, seed=0)
    letter, intents = "formal-letter", "json-intents"
    return Subject(
        base,
        (
            Text("the same JSON again", second(intents, 0), answer, intents),
            Text("a second letter", second(letter, 1), answer, letter),
            Text("first answers", firsts, answer),
            Text("random words", firsts, wild),
        ),
    )


def half_billion() -> Subject:
    """Random weights of Qwen2.5-0.5B's shapes: kept to three tokens, or free to say anything."""
    base = workload.qwen_half_billion()
    prompts = tuple(workload.prompts(base, 2 * MOST, PROMPT_TOKENS))
    few = dict.fromkeys((1000, 1001, 1002), 100.0)
    kept = Sampling(max_tokens=32, temperature=0.0, ignore_eos=True, logit_bias=few)
    free = Sampling(max_tokens=32, ignore_eos=True, seed=0)
    return Subject(base, (Text("three words", prompts, kept), Text("random words", prompts, free)))


SUBJECTS: dict[str, Callable[[], Subject]] = {"embedded": embedded, "half-billion": half_billion}


@dataclass(frozen=True)
class Turn:
    """One run of all requests."""

    tokens: int
    steps: int
    seconds: float
    drafted: int
    accepted: int
    own_seconds: float
    answers: dict[str, tuple[int, ...]]

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class Timed(Drafting):
    """Knows how long it took itself, in seconds: to look for drafts, to choose and to learn."""

    own_seconds = 0.0

    def extend(self, decodes: list[Scheduled], *, alone: bool) -> list[Scheduled]:
        """See Drafting."""
        start = time.perf_counter()
        items = super().extend(decodes, alone=alone)
        self.own_seconds += time.perf_counter() - start
        return items

    def observe(self, plan: StepPlan, runs: Sequence[Sequence[int]]) -> None:
        """See Drafting."""
        start = time.perf_counter()
        super().observe(plan, runs)
        self.own_seconds += time.perf_counter() - start


class Bench:
    """An engine, and requests for it."""

    def __init__(self, engine: Engine, digests: dict[str, str]) -> None:
        self._engine = engine
        self._digests = digests

    def drafting(self, *, on: bool) -> Timed:
        """One that has learnt nothing yet."""
        scheduler = self._engine.scheduler
        limits = replace(scheduler.limits, speculation=on)
        return Timed(limits, scheduler.tables, time.perf_counter)

    def turn(self, text: Text, batch: int, count: int, drafting: Timed) -> Turn:
        """`count` requests, `batch` of them at any time."""
        engine = self._engine
        engine.scheduler.drafting = drafting
        before = drafting.drafted, drafting.accepted, drafting.own_seconds
        waiting = self._requests(text, count)
        answers: dict[str, tuple[int, ...]] = {}
        steps = 0
        start = time.perf_counter()
        for request in itertools.islice(waiting, batch):
            engine.handle(request)
        while engine.busy:
            engine.step()
            steps += 1
            for event in engine.take_events():
                if isinstance(event, Tokens):
                    answers[event.id] = answers.get(event.id, ()) + event.tokens
                    if event.finish and (request := next(waiting, None)):
                        engine.handle(request)
        return Turn(
            tokens=sum(map(len, answers.values())),
            steps=steps,
            seconds=time.perf_counter() - start,
            drafted=drafting.drafted - before[0],
            accepted=drafting.accepted - before[1],
            own_seconds=drafting.own_seconds - before[2],
            answers=answers,
        )

    def _requests(self, text: Text, count: int) -> Iterator[Generate]:
        prompts = itertools.cycle(text.prompts)
        for number, prompt in zip(range(count), prompts, strict=False):
            yield Generate(
                id=str(number),
                tenant=TenantContext("benchmark"),
                prompt=prompt,
                sampling=text.sampling,
                blend=alone(self._digests.get(text.adapter or "")),
            )


@contextmanager
def bench(subject: Subject, threads: int) -> Iterator[Bench]:
    """An engine for the subject, in this process."""
    with tempfile.TemporaryDirectory() as store:
        names = {text.adapter for text in subject.texts if text.adapter}
        digests = {name: Store(Path(store)).put(DEMO_ADAPTERS / name) for name in sorted(names)}
        config = EngineConfig(
            model=str(subject.base.folder),
            store=store,
            max_num_seqs=MOST,
            max_model_len=512,
            prefix_caching=False,
            threads=threads,
        )
        engine = Engine.load(config, lambda stage, done, total: None)
        try:
            yield Bench(engine, digests)
        finally:
            engine.close()


def main(
    model: Annotated[str, typer.Option(help="embedded or half-billion")] = "embedded",
    batches: Annotated[str, typer.Option(help="sequences at a time")] = "1,4,32",
    repeats: Annotated[int, typer.Option(help="turns of each side; medians are reported")] = 3,
    requests: Annotated[int, typer.Option(help="least number in a turn")] = 10,
    threads: Annotated[int, typer.Option(help="torch threads")] = 0,
) -> None:
    """Runs the benchmark and writes its results file."""
    subject = SUBJECTS[model]()
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    bandwidth = machine.read_bandwidth(torch.device("cpu"))
    sizes = [int(size) for size in batches.split(",")]
    cases = []
    with bench(subject, threads) as side, Progress(console=console) as progress:
        task = progress.add_task(model, total=len(subject.texts) * len(sizes) * (2 * repeats + 1))
        for text, size in itertools.product(subject.texts, sizes):
            turns = _turns(side, text, size, max(requests, size), repeats, progress, task)
            cases.append(_figures(subject.base, text, size, *turns, bandwidth))
    _print(model, cases)
    results = {"threads": threads, "read_bandwidth": bandwidth, "repeats": repeats, "cases": cases}
    console.print(f"written: {machine.write_results(f'speculation-{model}', results)}")


def _turns(
    side: Bench,
    text: Text,
    size: int,
    count: int,
    repeats: int,
    progress: Progress,
    task: Any,
) -> tuple[list[Turn], list[Turn]]:
    """Without and with drafts, in turns; one turn before them in which costs are learnt."""
    off, on = side.drafting(on=False), side.drafting(on=True)
    side.turn(text, size, count, on)
    progress.advance(task)
    plain, drafted = [], []
    for _ in range(repeats):
        for turns, drafting in ((plain, off), (drafted, on)):
            turns.append(side.turn(text, size, count, drafting))
            progress.advance(task)
    return plain, drafted


def _figures(
    base: workload.Base, text: Text, size: int, off: list[Turn], on: list[Turn], bandwidth: float
) -> dict[str, Any]:
    """What the turns showed; the floor reads all weights once for each token of each sequence."""
    pairs = [b.speed / a.speed for a, b in zip(off, on, strict=True)]
    drafted = sum(turn.drafted for turn in on)
    same = [
        a.answers[name] == b.answers[name]
        for a, b in zip(off, on, strict=True)
        for name in a.answers
    ]
    return {
        "text": text.name,
        "sequences": size,
        "tokens_per_second_off": statistics.median(turn.speed for turn in off),
        "tokens_per_second_on": statistics.median(turn.speed for turn in on),
        "ratio": statistics.median(pairs),
        "ratio_spread": [min(pairs), max(pairs)],
        "tokens_per_step_off": sum(t.tokens for t in off) / sum(t.steps for t in off),
        "tokens_per_step_on": sum(t.tokens for t in on) / sum(t.steps for t in on),
        "drafts_per_token": drafted / sum(turn.tokens for turn in on),
        "acceptance": sum(turn.accepted for turn in on) / drafted if drafted else None,
        "own_share": sum(turn.own_seconds for turn in on) / sum(turn.seconds for turn in on),
        "same_answers": sum(same) / len(same),
        "floor_tokens_per_second_off": size * bandwidth / (base.read_bytes(4)),
    }


def _print(model: str, cases: list[dict[str, Any]]) -> None:
    table = Table(title=f"{model}: with drafts and without")
    for column in (
        "text",
        "sequences",
        "tokens/s off",
        "on",
        "ratio",
        "tokens a step off",
        "on",
        "acceptance",
        "own time",
        "same answers",
        "floor off",
    ):
        table.add_column(column, justify="left" if column == "text" else "right")
    for case in cases:
        low, high = case["ratio_spread"]
        acceptance = case["acceptance"]
        table.add_row(
            case["text"],
            str(case["sequences"]),
            f"{case['tokens_per_second_off']:.0f}",
            f"{case['tokens_per_second_on']:.0f}",
            f"{case['ratio']:.2f} ({low:.2f}–{high:.2f})",
            f"{case['tokens_per_step_off']:.1f}",
            f"{case['tokens_per_step_on']:.1f}",
            "–" if acceptance is None else f"{acceptance:.2f}",
            f"{case['own_share']:.2%}",
            f"{case['same_answers']:.1%}",
            f"{case['floor_tokens_per_second_off']:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

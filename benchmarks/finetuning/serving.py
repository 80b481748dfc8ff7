"""What weft makes of trained adapters: their answers from mixed batches, their bytes, their speed.

Each base is one engine: the embedded one as it is, or in NF4 for what was trained on that.
"""

import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from weft_engine import Request, WeftEngine

from finetuning.methods import FULL
from finetuning.training import MAX_NEW_TOKENS, Trained, prompt_of
from weft.server.demo import BASE
from weft.server.demo.corpus import Conversation

CLIENTS = 32
NEW_TOKENS = 32
BASE_MIX, COPIES_MIX = "base", "full, as copies of the model"
_AT_ONCE = 256
_ADAPTER_MEMORY = 256 << 20

Advance = Callable[[int], None]
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Exam:
    """Conversations of one turn whose answers are either right in every character or wrong.

    tasks: test prompts by task   general: what the base could already do
    """

    tasks: Mapping[str, tuple[Conversation, ...]]
    general: tuple[Conversation, ...]

    def questions(self, task: str) -> tuple[Conversation, ...]:
        """What an adapter for this task is asked."""
        return (*self.tasks[task], *self.general)


@dataclass(frozen=True)
class Score:
    """Shares of right answers, from 0 to 1.

    agreeing: prompts, of `checked`, that the training framework's own forward answers with the
        very same tokens
    """

    task: float
    general: float
    agreeing: int = 0
    checked: int = 0


@dataclass(frozen=True)
class Served:
    """What one engine found.

    scores, device_bytes: of each run, in order   base: of the base, by task
    speeds: tokens a second, medians; BASE_MIX, `METHOD, one` where all requests name one adapter,
        `METHOD, all` where they name the method's adapters in turn, and COPIES_MIX, where the base
        answers one such group after the other, as copies of it would that share the device
    """

    scores: tuple[Score, ...]
    base: Mapping[str, Score]
    weight_bytes: int
    device_bytes: tuple[int, ...]
    speeds: Mapping[str, float]


async def serve(
    runs: Sequence[Trained], quantization: str, exam: Exam, repeats: int, advance: Advance
) -> Served:
    """Starts an engine on the base, with the adapters of all runs, and asks and times it.

    advance: told of `amount(...)` pieces of work
    """
    with tempfile.TemporaryDirectory() as store:
        async with WeftEngine(
            BASE,
            [run.adapter for run in runs],
            Path(store),
            quantization=quantization,
            dtype="float32",
            device="cpu",
            threads=1,
            max_num_seqs=2 * CLIENTS,
            adapter_memory=_ADAPTER_MEMORY,
        ) as engine:
            scores = await _scores(engine, runs, exam, advance)
            return Served(
                scores=tuple(scores[: len(runs)]),
                base=dict(zip(exam.tasks, scores[len(runs) :], strict=True)),
                weight_bytes=engine.weight_bytes,
                device_bytes=tuple(report.bytes for report in engine.reports),
                speeds=await _speeds(engine, runs, repeats, advance),
            )


def amount(runs: Sequence[Trained], exam: Exam, repeats: int) -> int:
    """How much work `serve` is: questions and timed turns."""
    pupils = [run.job.task for run in runs] + list(exam.tasks)
    return sum(len(exam.questions(task)) for task in pupils) + repeats + 1


async def _scores(
    engine: WeftEngine, runs: Sequence[Trained], exam: Exam, advance: Advance
) -> list[Score]:
    """Of each run, then of the base for each task; all are asked in the same batches."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(BASE)
    pupils: list[tuple[int | None, str]] = [(i, run.job.task) for i, run in enumerate(runs)]
    pupils += [(None, task) for task in exam.tasks]
    asked = [
        Request(prompt_of(tokenizer, conversation), adapter)
        for adapter, task in pupils
        for conversation in exam.questions(task)
    ]
    answers = iter(await _answers(engine, asked, advance))
    scores = []
    for adapter, task in pupils:
        said = [next(answers) for _ in exam.questions(task)]
        right = [
            tokenizer.decode(tokens, skip_special_tokens=True) == conversation.turns[0][1]
            for tokens, conversation in zip(said, exam.questions(task), strict=True)
        ]
        own = len(exam.tasks[task])
        expected = () if adapter is None else runs[adapter].answers
        scores.append(
            Score(
                statistics.fmean(right[:own]),
                statistics.fmean(right[own:]),
                sum(map(_same, said, expected)),
                len(expected),
            )
        )
    return scores


async def _answers(engine: WeftEngine, asked: Sequence[Request], advance: Advance) -> list[Tokens]:
    """In the order of the requests; sent in a random one, so that batches are mixed."""
    order = random.Random("order of questions").sample(range(len(asked)), len(asked))
    said: dict[int, Tokens] = {}
    for start in range(0, len(order), _AT_ONCE):
        chunk = order[start : start + _AT_ONCE]
        answers = await engine.answers([asked[index] for index in chunk], MAX_NEW_TOKENS)
        said |= zip(chunk, answers, strict=True)
        advance(len(chunk))
    return [said[index] for index in range(len(asked))]


def _same(said: Tokens, expected: Tokens) -> bool:
    """Whether they are equal; `said` may lack the end of the answer, which is not text."""
    return said in (expected, expected[:-1])


async def _speeds(
    engine: WeftEngine, runs: Sequence[Trained], repeats: int, advance: Advance
) -> dict[str, float]:
    """By mix, see Served. All mixes run in turns, so that a noisy moment hits all of them."""
    by_method: dict[str, list[int | None]] = {}
    for index, run in enumerate(runs):
        by_method.setdefault(run.job.method, []).append(index)
    mixes: dict[str, Sequence[int | None]] = {BASE_MIX: [None]}
    for method, own in by_method.items():
        mixes |= {f"{method}, one": own[:1], f"{method}, all": own}
    seen: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        for name, adapters in mixes.items():
            seen.setdefault(name, []).append(await _speed(engine, adapters, groups=1))
        if FULL in by_method:
            apart = await _speed(engine, [None], groups=len(by_method[FULL]))
            seen.setdefault(COPIES_MIX, []).append(apart)
        if turn == 0:
            seen.clear()  # it warmed up
        advance(1)
    return {name: statistics.median(values) for name, values in seen.items()}


async def _speed(engine: WeftEngine, adapters: Sequence[int | None], groups: int) -> float:
    """Tokens a second of CLIENTS requests, sent in so many groups that wait for each other."""
    prompts = random.Random("prompts of timed requests")
    jobs = [
        (tuple(prompts.choices(range(5, 1000), k=NEW_TOKENS)), adapters[i % len(adapters)])
        for i in range(CLIENTS)
    ]
    seconds = 0.0
    for group in range(groups):
        seconds += (await engine.run(jobs[group::groups], NEW_TOKENS)).seconds
    return CLIENTS * NEW_TOKENS / seconds

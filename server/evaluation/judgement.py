"""What a model's scores mean: whether it helps, and whether it forgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from weft.server.evaluation.outcome import Outcome
from weft.server.evaluation.scores import Scores, scores

MARGIN = 0.01
"""Nats a token: a smaller difference of losses is of no use, however sure it is."""
FEWEST_EXAMPLES = 8
"""With fewer an interval says nothing: draws of so few examples are too much alike."""


class Verdict(StrEnum):
    """What an adapter does to the loss on some examples."""

    HELPS = "helps"
    NO_DIFFERENCE = "no difference"
    HARMS = "harms"
    TOO_FEW = "too few examples"


@dataclass(frozen=True)
class Judgement:
    """One model on the examples of the task and on the general ones, None where there are none.

    verdict: what it does on the task; None for the base and without examples of the task
    forgets: whether it harms on the general ones; None where that cannot be told
    """

    model: str
    task: Scores | None
    general: Scores | None
    verdict: Verdict | None
    forgets: bool | None


def judge(
    general: Sequence[bool], outcomes: Mapping[str, Sequence[Outcome]], base: str, seed: int
) -> list[Judgement]:
    """Judges each model of `outcomes` beside the one called `base`.

    general: of each example, whether it shows what was forgotten rather than what was learnt
    outcomes: of each model, one for each example
    """
    task, forgotten = (
        scores(
            {
                model: [one for one, is_kind in zip(found, general, strict=True) if is_kind is kind]
                for model, found in outcomes.items()
            },
            base,
            seed,
        )
        for kind in (False, True)
    )
    return [_judgement(model, task[model], forgotten[model]) for model in outcomes]


def verdict(found: Scores | None) -> Verdict | None:
    """What the difference of losses means: it counts if it is sure, and at least MARGIN."""
    if found is None or (difference := found.loss.difference) is None:
        return None
    if found.examples < FEWEST_EXAMPLES:
        return Verdict.TOO_FEW
    if difference.high < 0 and difference.value <= -MARGIN:
        return Verdict.HELPS
    if difference.low > 0 and difference.value >= MARGIN:
        return Verdict.HARMS
    return Verdict.NO_DIFFERENCE


def _judgement(model: str, task: Scores | None, general: Scores | None) -> Judgement:
    in_general = verdict(general)
    unknown = in_general in (None, Verdict.TOO_FEW)
    forgets = None if unknown else in_general is Verdict.HARMS
    return Judgement(model, task, general, verdict(task), forgets)

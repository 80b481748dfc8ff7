"""The evaluations that tenants have under way or finished, in memory. Knows no HTTP."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from weft.adapters.tenancy import TenantContext
from weft.server.admission import Admission
from weft.server.engine.client import EngineClient
from weft.server.errors import ApiError, ErrorCode, translate
from weft.server.evaluation.bootstrap import CONFIDENCE, RESAMPLES
from weft.server.evaluation.encoded import Encoded
from weft.server.evaluation.judgement import MARGIN, judge
from weft.server.evaluation.measuring import Measuring, Model
from weft.server.evaluation.outcome import Outcome
from weft.server.text import Text
from weft.server.usage.meter import Meter

MAX_RUNNING = 2
MAX_KEPT = 8
MAX_KEPT_OF_ALL = 256
Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to evaluate: the base first, then adapters; `seed` is the bootstrap's."""

    models: Sequence[Model]
    examples: Sequence[Encoded]
    seed: int

    @property
    def total(self) -> int:
        """How many outcomes there will be."""
        return len(self.models) * len(self.examples)


@dataclass
class Evaluation:
    """One evaluation: how far it is, and in the end its result or the error that ended it."""

    id: str
    tenant: TenantContext
    models: list[str]
    total: int
    created: float = field(default_factory=time.time)
    done: int = 0
    result: Json | None = None
    error: Json | None = None
    task: asyncio.Task[None] | None = None

    @property
    def status(self) -> str:
        """OpenAI's word for where it stands."""
        if self.error is not None:
            return "failed"
        return "in_progress" if self.result is None else "completed"

    def advance(self) -> None:
        """One more outcome is there."""
        self.done += 1


class Evaluations:
    """Starts, finds and removes evaluations; few at a time, so that they stay in the background.

    admission: charges their tokens   meter: counts what they use   places: how many of their
        requests may be in the engine, all evaluations together
    """

    def __init__(
        self,
        engine: EngineClient,
        text: Text,
        admission: Admission,
        meter: Meter,
        places: int,
    ) -> None:
        self._engine = engine
        self._text = text
        self._admission = admission
        self._meter = meter
        self._places = places
        self._slots = asyncio.Semaphore(places)
        self._all: dict[str, Evaluation] = {}  # oldest first

    def start(self, tenant: TenantContext, plan: Plan, leases: ExitStack) -> Evaluation:
        """Starts an evaluation, which takes over `leases` until it ends; raises ApiError."""
        mine = self.of(tenant)
        if sum(one.status == "in_progress" for one in mine) >= MAX_RUNNING:
            raise ApiError(ErrorCode.QUEUE_FULL)
        self._make_room(mine, MAX_KEPT)
        self._make_room(list(self._all.values()), MAX_KEPT_OF_ALL)
        names = [model.name for model in plan.models]
        evaluation = Evaluation(f"eval-{secrets.token_hex(12)}", tenant, names, plan.total)
        self._all[evaluation.id] = evaluation
        evaluation.task = asyncio.create_task(self._run(evaluation, plan))
        held = leases.pop_all()
        evaluation.task.add_done_callback(lambda _: held.close())
        return evaluation

    def of(self, tenant: TenantContext) -> list[Evaluation]:
        """A tenant's evaluations, the oldest first."""
        return [one for one in self._all.values() if one.tenant.id == tenant.id]

    def get(self, tenant: TenantContext, identity: str) -> Evaluation:
        """A tenant's evaluation; raises ApiError where the tenant has none of this id."""
        found = self._all.get(identity)
        if found is None or found.tenant.id != tenant.id:
            raise ApiError(ErrorCode.EVALUATION_NOT_FOUND, values={"id": identity[:64]})
        return found

    async def remove(self, tenant: TenantContext, identity: str) -> None:
        """Cancels an evaluation that is under way, and forgets it."""
        evaluation = self.get(tenant, identity)
        del self._all[identity]
        if evaluation.task is not None:
            evaluation.task.cancel()
            await asyncio.gather(evaluation.task, return_exceptions=True)

    def _make_room(self, among: Sequence[Evaluation], limit: int) -> None:
        """Forgets the oldest that has ended, if there are `limit`; raises ApiError if none has."""
        if len(among) < limit:
            return
        ended = next((one for one in among if one.status != "in_progress"), None)
        if ended is None:
            raise ApiError(ErrorCode.QUEUE_FULL)
        self._all.pop(ended.id, None)

    async def _run(self, evaluation: Evaluation, plan: Plan) -> None:
        try:
            measuring = Measuring(
                self._engine,
                self._text,
                evaluation.tenant.background,
                self._slots,
                pay=partial(self._admission.pay, evaluation.tenant),
                meter=self._meter,
                name=evaluation.id,
                done=evaluation.advance,
            )
            outcomes = await measuring.run(plan.models, plan.examples, self._places)
            evaluation.result = await asyncio.to_thread(_result, plan, outcomes)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the evaluation's result
            evaluation.error = translate(error).body(evaluation.id)["error"]


def _result(plan: Plan, outcomes: dict[str, list[Outcome]]) -> Json:
    general = [encoded.example.general for encoded in plan.examples]
    judged = judge(general, outcomes, plan.models[0].name, plan.seed)
    return {
        "base": plan.models[0].name,
        "examples": {"task": general.count(False), "general": general.count(True)},
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": plan.seed},
        "margin": MARGIN,
        "models": [
            asdict(judgement) | {"digest": model.digest, "outcomes": _rows(outcomes[model.name])}
            for model, judgement in zip(plan.models, judged, strict=True)
        ],
    }


def _rows(outcomes: Sequence[Outcome]) -> list[Json]:
    return [asdict(outcome) for outcome in outcomes]

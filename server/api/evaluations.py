"""/v1/evaluations: whether adapters help, on examples that the client sends."""

from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field
from starlette.datastructures import Headers

from weft.server.api.body import RequestBody, describes, json_body
from weft.server.api.json_response import json_response
from weft.server.errors import ApiError, ErrorCode, invalid
from weft.server.evaluation.encoded import Encoded, encode
from weft.server.evaluation.evaluations import Evaluation, Json, Plan
from weft.server.evaluation.examples import Example
from weft.server.evaluation.measuring import Model
from weft.server.reading import LONG
from weft.server.services import Services, services_of
from weft.server.usage.counts import BASE as BASE_USED
from weft.server.usage.counts import Used

BASE = "base"
MAX_ADAPTERS = 16
MAX_EXAMPLES = 2000
_NO_HEADERS = Headers({})

router = APIRouter(prefix="/v1/evaluations")


class EvaluationRequest(RequestBody):
    """What to compare with the base on which examples; `seed` makes the intervals repeatable.

    adapters: names or name@version; the base, by its name or as "base", is part of it anyway
    """

    adapters: list[str] = Field(min_length=1, max_length=MAX_ADAPTERS)
    examples: list[Example] = Field(min_length=1, max_length=MAX_EXAMPLES)
    seed: int = Field(0, ge=0, le=2**32 - 1)


@router.post("", openapi_extra=describes(EvaluationRequest))
async def create_evaluation(
    request: Request, body: Annotated[EvaluationRequest, Depends(json_body(EvaluationRequest))]
) -> Response:
    """Starts an evaluation in the background; answers 202 with its id."""
    services, tenant = services_of(request), request.state.tenant
    if services.admission.draining:
        raise ApiError(ErrorCode.DRAINING)
    # Thousands of examples are long whatever they hold.
    examples = await services.reading(tenant, LONG, _encoded, services, body.examples)
    with ExitStack() as leases:
        models = _models(services, request, body.adapters, leases)
        plan = Plan(models, examples, body.seed)
        evaluation = services.evaluations.start(tenant, plan, leases)
        return json_response(describe(evaluation), status=202)


@router.get("")
async def list_evaluations(request: Request) -> Response:
    """The tenant's evaluations, the oldest first, without their results."""
    found = services_of(request).evaluations.of(request.state.tenant)
    listed = [describe(evaluation) for evaluation in found]
    return json_response({"object": "list", "data": listed, "has_more": False})


@router.get("/{identity}")
async def show_evaluation(request: Request, identity: str) -> Response:
    """How far an evaluation is; once it is completed, its result."""
    evaluation = services_of(request).evaluations.get(request.state.tenant, identity)
    return json_response(describe(evaluation) | {"result": evaluation.result})


@router.delete("/{identity}")
async def delete_evaluation(request: Request, identity: str) -> Response:
    """Cancels an evaluation, or forgets one that has ended."""
    await services_of(request).evaluations.remove(request.state.tenant, identity)
    return json_response({"id": identity, "object": "evaluation", "deleted": True})


def describe(evaluation: Evaluation) -> Json:
    """What a client sees of an evaluation, its result left out."""
    return {
        "object": "evaluation",
        "id": evaluation.id,
        "status": evaluation.status,
        "created": int(evaluation.created),
        "models": evaluation.models,
        "progress": {"done": evaluation.done, "total": evaluation.total},
        "error": evaluation.error,
    }


def _encoded(services: Services, examples: list[Example]) -> list[Encoded]:
    """All examples as tokens; raises ApiError naming the example and field at fault."""
    limit = services.engine.info.max_model_len
    found = []
    for index, example in enumerate(examples):
        try:
            found.append(encode(example, services.text, limit))
        except ApiError as error:
            raise error.within(f"examples[{index}]") from None
    return found


def _models(
    services: Services, request: Request, names: list[str], leases: ExitStack
) -> list[Model]:
    """The base and the named versions, which are held by `leases`; raises ApiError."""
    base, tenant, choice = services.base_name, request.state.tenant, request.state.request_id
    models = {base: Model(base, Used(BASE_USED, services.engine.info.model_digest))}
    for index, name in enumerate(names):
        if name == BASE or name in services.router.base_names:
            continue
        found = services.router.target(tenant, _NO_HEADERS, name, choice)
        target = leases.enter_context(found)
        if target.id in models:
            raise invalid(f"adapters[{index}]", "is the same version as another one")
        models[target.id] = Model(target.id, target.used_by(tenant), target.blend)
    return list(models.values())

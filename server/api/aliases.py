"""/v1/aliases: names that lead to other names, all of a tenant's requests or shares of them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from weft.adapters.alias import LARGEST_WEIGHT, MOST_TARGETS, Alias, Arm
from weft.adapters.aliases import Aliases
from weft.server.api.adapters import changes_allowed, if_match
from weft.server.api.body import RequestBody, describes, json_body
from weft.server.api.changes import note
from weft.server.api.json_response import json_response
from weft.server.services import services_of

router = APIRouter(prefix="/v1/aliases")
changing = APIRouter(prefix="/v1/aliases", dependencies=[Depends(changes_allowed)])
Weight = Annotated[float, Field(gt=0, le=LARGEST_WEIGHT)]


class PutAliasRequest(RequestBody):
    """Where an alias leads: names, name@version or other aliases, by their weights."""

    targets: dict[str, Weight] = Field(min_length=1, max_length=MOST_TARGETS)


class PromoteRequest(RequestBody):
    """Which of an alias's targets takes all."""

    target: str = Field(max_length=128)


@router.get("")
async def list_aliases(request: Request) -> Response:
    """The tenant's aliases by name."""
    found = [describe(alias) for alias in _aliases(request).list(request.state.tenant)]
    return json_response({"object": "list", "data": found, "has_more": False})


@router.get("/{name}")
async def show_alias(request: Request, name: str) -> Response:
    """Where an alias leads, and where it led before its last change."""
    return _answer(_aliases(request).get(request.state.tenant, name))


@changing.put("/{name}", openapi_extra=describes(PutAliasRequest))
async def put_alias(
    request: Request,
    name: str,
    body: Annotated[PutAliasRequest, Depends(json_body(PutAliasRequest))],
) -> Response:
    """Makes an alias, or lets it lead elsewhere from the next request on."""
    library, tenant = services_of(request).library, request.state.tenant
    library.check_name(name)
    expected = if_match(request)
    return _changed(
        request, await library.commit(_aliases(request).put, tenant, name, body.targets, expected)
    )


@changing.post("/{name}/promote", openapi_extra=describes(PromoteRequest))
async def promote_target(
    request: Request,
    name: str,
    body: Annotated[PromoteRequest, Depends(json_body(PromoteRequest))],
) -> Response:
    """Lets one of the alias's targets take all."""
    library, tenant = services_of(request).library, request.state.tenant
    note(request, target=body.target)
    expected = if_match(request)
    return _changed(
        request,
        await library.commit(_aliases(request).promote, tenant, name, body.target, expected),
    )


@changing.post("/{name}/rollback")
async def roll_back_alias(request: Request, name: str) -> Response:
    """Lets the alias lead where it led before its last change."""
    library, tenant = services_of(request).library, request.state.tenant
    return _changed(
        request, await library.commit(_aliases(request).rollback, tenant, name, if_match(request))
    )


@changing.delete("/{name}")
async def delete_alias(request: Request, name: str) -> Response:
    """Forgets an alias; what it led to stays."""
    library, tenant = services_of(request).library, request.state.tenant
    await library.commit(_aliases(request).remove, tenant, name, if_match(request))
    return json_response({"id": name, "object": "alias", "deleted": True})


def describe(alias: Alias) -> dict[str, Any]:
    """What a client sees of an alias."""
    return {
        "object": "alias",
        "name": alias.name,
        "targets": _targets(alias.arms),
        "previous": _targets(alias.previous) or None,
        "digest": alias.digest,
        "changed": int(alias.changed),
    }


def _targets(arms: tuple[Arm, ...]) -> dict[str, float]:
    return {arm.target: arm.weight for arm in arms}


def _aliases(request: Request) -> Aliases:
    return services_of(request).registry.aliases


def _changed(request: Request, alias: Alias) -> Response:
    note(request, digest=alias.digest, targets=_targets(alias.arms))
    return _answer(alias)


def _answer(alias: Alias) -> Response:
    answer = json_response(describe(alias))
    answer.headers["ETag"] = f'"{alias.digest}"'
    return answer

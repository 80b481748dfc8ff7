"""/v1/adapters: what adapters a tenant has, and loading, replacing, pinning and removing them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from msgspec import structs
from pydantic import Field

from weft.adapters.errors import UnknownAdapter
from weft.adapters.registry import Adapter
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import Version
from weft.server.api.attention import while_connected
from weft.server.api.body import RequestBody, parse, read_json_bytes
from weft.server.api.changes import note, note_load, note_version
from weft.server.api.hub import fetched_folder
from weft.server.api.json_response import json_response
from weft.server.api.sources import allowed_folder
from weft.server.api.upload import received
from weft.server.arrivals import Allowance
from weft.server.errors import ApiError, ErrorCode, invalid
from weft.server.library import Installed
from weft.server.selection import AdapterName
from weft.server.services import Services, services_of

_FLAG = "--allow-runtime-adapters"
_PAGE = 1000
Json = dict[str, Any]


class PutAdapterRequest(RequestBody):
    """Where a new version comes from: a folder on the server, or a repository of the hub."""

    path: str | None = Field(None, min_length=1, max_length=4096)
    repo: str | None = None
    revision: str | None = Field(None, min_length=1, max_length=128)


def changes_allowed(request: Request) -> None:
    """Raises ApiError where clients may not change what adapters there are."""
    if not services_of(request).settings.allow_runtime_adapters:
        raise ApiError(ErrorCode.ADAPTER_LOADING_DISABLED, values={"flag": _FLAG})


router = APIRouter(prefix="/v1/adapters")
changing = APIRouter(prefix="/v1/adapters", dependencies=[Depends(changes_allowed)])


def describe(services: Services, tenant: TenantContext, adapter: Adapter) -> Json:
    """What a client sees of an adapter."""
    state = services.metrics.states().get(adapter.digest)
    report = orjson.loads(adapter.report)
    if adapter.failed is None:
        status = "ready"
    else:
        status = "loading" if services.library.loading(tenant, adapter.name) else "failed"
    return {
        "object": "adapter",
        "name": adapter.name,
        "id": adapter.id,
        "version": adapter.version,
        "digest": adapter.digest,
        "state": status,
        "reason": adapter.failed,
        "tier": state.tier if state else "disk",
        "method": report["method"],
        "rank": report["rank"],
        "virtual_tokens": report.get("virtual_tokens", 0),
        "bytes": report["bytes"],
        "file_bytes": adapter.bytes,
        "pinned": adapter.pinned,
        "refs": adapter.leases,
        "aliases": [
            {"alias": alias.name, "target": arm.target, "weight": arm.weight}
            for alias, arm in services.registry.aliases.pointing(tenant, adapter.name)
        ],
        "versions": adapter.versions,
        "warnings": report["warnings"],
        "created": int(adapter.created),
        "last_used": adapter.last_used and int(adapter.last_used),
    }


@router.get("")
async def list_adapters(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=_PAGE)] = _PAGE,
    after: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The tenant's adapters by name, a page at a time; those that are loading come first."""
    services, tenant = services_of(request), request.state.tenant
    found = services.registry.list(tenant, after, limit + 1)
    page = [describe(services, tenant, adapter) for adapter in found[:limit]]
    arriving = [] if after else _arriving(services, tenant)
    return json_response(
        {"object": "list", "data": [*arriving, *page], "has_more": len(found) > limit}
    )


@router.get("/{name}")
async def show_adapter(request: Request, name: str) -> Response:
    """An adapter with all its versions, and what its load found; of an alias where it ends."""
    services, tenant = services_of(request), request.state.tenant
    try:
        return _shown(services, tenant, name)
    except UnknownAdapter:
        if services.registry.aliases.find(tenant, name) is not None:
            ends = services.registry.ends(tenant, name)
            return _led_to(services, "alias", AdapterName(None, name), ends)
        arriving = [entry for entry in _arriving(services, tenant) if entry["name"] == name]
        if not arriving:
            raise
        return json_response(arriving[0])


@router.get("/{owner}/{name}")
async def show_shared_adapter(
    request: Request, adapter: Annotated[AdapterName, Depends()]
) -> Response:
    """What another tenant shares with the caller: the versions that answer for it now."""
    services, tenant = services_of(request), request.state.tenant
    owner = services.tenants.policy.owner(tenant, adapter)
    ends = services.registry.ends(owner, adapter.name)
    if not ends:
        raise UnknownAdapter(str(adapter))
    return _led_to(services, "shared", adapter, ends)


@changing.put("/{name}")
async def put_adapter(request: Request, name: str, dry_run: bool = False) -> Response:
    """Loads a new version, by path, from the hub or as an upload; answers when it can serve."""
    services, tenant = services_of(request), request.state.tenant
    services.library.check_name(name)
    if dry_run:
        note(request, dry_run=True)
    installed = await _install(request, services, name, dry_run)
    report = structs.asdict(installed.report)
    if installed.version is None:
        return json_response({"object": "adapter", "name": name, "dry_run": True, "report": report})
    note_load(request, installed.before, installed.version)
    return _shown(services, tenant, name, report=report)


@changing.delete("/{name}")
async def delete_adapter(request: Request, name: str) -> Response:
    """Removes an adapter with its versions; requests that run with it are finished."""
    services, tenant = services_of(request), request.state.tenant
    note_version(request, services.registry.lookup(tenant, name))
    await services.library.remove(tenant, name, if_match(request))
    return json_response({"id": name, "object": "adapter", "deleted": True})


@changing.post("/{name}/rollback")
async def roll_back_adapter(
    request: Request, name: str, version: Annotated[int | None, Query(ge=1)] = None
) -> Response:
    """Points the name to the version given, or to the one before the current one."""
    services, tenant = services_of(request), request.state.tenant
    after = await services.library.rollback(tenant, name, version, if_match(request))
    note_version(request, after)
    return _shown(services, tenant, name)


@changing.post("/{name}/pin")
async def pin_adapter(request: Request, name: str) -> Response:
    """Keeps the adapter on the device."""
    services, tenant = services_of(request), request.state.tenant
    version = await services.library.pin(tenant, name, True, if_match(request))
    note_version(request, version)
    return _shown(services, tenant, name)


@changing.post("/{name}/unpin")
async def unpin_adapter(request: Request, name: str) -> Response:
    """Lets the adapter leave the device when others need its room."""
    services, tenant = services_of(request), request.state.tenant
    version = await services.library.pin(tenant, name, False, if_match(request))
    note_version(request, version)
    return _shown(services, tenant, name)


@router.post("/{name}/prefetch")
async def prefetch_adapter(request: Request, name: str) -> Response:
    """Brings the adapter to the device ahead of use; does not wait until it is there."""
    services, tenant = services_of(request), request.state.tenant
    await services.library.prefetch(tenant, name)
    return _shown(services, tenant, name)


def if_match(request: Request) -> str | None:
    """The digest that the client expects to change."""
    expected = request.headers.get("if-match")
    return None if expected is None else expected.strip().strip('"')


async def _install(request: Request, services: Services, name: str, dry_run: bool) -> Installed:
    """Loads what the request sends or names, as long as its client waits for it."""
    library, largest = services.library, services.settings.max_adapter_size
    tenant = request.state.tenant
    install = partial(
        library.install,
        tenant,
        name,
        expected=if_match(request),
        dry_run=dry_run,
        awaited=partial(while_connected, request.receive),
    )
    content_type = request.headers.get("content-type", "").lower()
    with library.allowance(tenant, name, largest) as allowance:
        if not content_type.startswith("application/json"):
            async with received(request, services.registry.arrivals(), allowance) as files:
                return await install(files)
        body = parse(PutAdapterRequest, await read_json_bytes(request))
        return await install(await _folder(services, body, allowance))


async def _folder(services: Services, body: PutAdapterRequest, allowance: Allowance) -> Path:
    """The folder on the server that a request names, or that was fetched for it."""
    if (body.path is None) == (body.repo is None):
        raise invalid("path", "give either path or repo")
    if body.path is not None:
        return allowed_folder(body.path, services.settings.adapter_root, allowance)
    if not services.settings.allow_hub_adapters:
        values = {"flag": "--allow-hub-adapters"}
        raise ApiError(ErrorCode.ADAPTER_LOADING_DISABLED, param="repo", values=values)
    return await services.library.work(fetched_folder, body.repo or "", body.revision, allowance)


def _shown(services: Services, tenant: TenantContext, name: str, **more: Any) -> Response:
    adapter = services.registry.lookup(tenant, name)
    versions = [
        {
            "version": version.version,
            "digest": version.digest,
            "created": int(version.created),
            "current": version.version == adapter.version,
            "file_bytes": version.bytes,
            "reason": version.failed,
        }
        for version in services.registry.versions(tenant, name)
    ]
    told = {
        "versions": versions,
        "report": orjson.loads(adapter.report),
        **more,
    }
    answer = json_response(describe(services, tenant, adapter) | told)
    answer.headers["ETag"] = f'"{adapter.digest}"'
    return answer


def _led_to(
    services: Services, kind: str, adapter: AdapterName, ends: Sequence[Version]
) -> Response:
    told = [_end(services, AdapterName(adapter.owner, version.id), version) for version in ends]
    return json_response({"object": kind, "name": str(adapter), "ends": told})


def _end(services: Services, identity: AdapterName, version: Version) -> Json:
    """A version that a name leads to, and what its load found."""
    state = services.metrics.states().get(version.digest)
    report = orjson.loads(version.report)
    return {
        "id": str(identity),
        "digest": version.digest,
        "reason": version.failed,
        "tier": state.tier if state else "disk",
        "warnings": report["warnings"],
        "report": report,
    }


def _arriving(services: Services, tenant: TenantContext) -> list[Json]:
    """Adapters whose first version is on its way."""
    entries = []
    for name in services.library.arriving(tenant):
        try:
            services.registry.lookup(tenant, name)
        except UnknownAdapter:
            entries.append({"object": "adapter", "name": name, "state": "loading", "versions": 0})
    return entries

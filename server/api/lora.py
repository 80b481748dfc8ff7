"""vLLM's two routes for adapters, with vLLM's bodies and answers."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field
from starlette.responses import PlainTextResponse

from weft.adapters.errors import UnknownAdapter
from weft.server.api.adapters import changes_allowed, if_match
from weft.server.api.body import RequestBody, describes, json_body
from weft.server.api.changes import note, note_load, note_version
from weft.server.api.fields import Ignored
from weft.server.api.sources import allowed_folder
from weft.server.errors import ApiError, ErrorCode, invalid
from weft.server.services import services_of

router = APIRouter(dependencies=[Depends(changes_allowed)])


class LoadLoraAdapterRequest(RequestBody):
    """vLLM's body; the base's name is known already."""

    lora_name: str
    lora_path: str = Field(min_length=1, max_length=4096)
    load_inplace: bool = False
    base_model_name: Ignored = None


class UnloadLoraAdapterRequest(RequestBody):
    """vLLM's body; numbers of adapters mean nothing here."""

    lora_name: str
    lora_int_id: Ignored = None


@router.post("/v1/load_lora_adapter", openapi_extra=describes(LoadLoraAdapterRequest))
async def load_lora_adapter(
    request: Request,
    body: Annotated[LoadLoraAdapterRequest, Depends(json_body(LoadLoraAdapterRequest))],
) -> Response:
    """Loads an adapter by path; a name that is taken already only with `load_inplace`."""
    services, tenant, name = services_of(request), request.state.tenant, body.lora_name
    note(request, name=name)
    services.library.check_name(name)
    if not body.load_inplace and _exists(request, name):
        raise invalid("lora_name", f"'{name}' is loaded already; set load_inplace to replace it")
    settings = services.settings
    with services.library.allowance(tenant, name, settings.max_adapter_size) as allowance:
        folder = allowed_folder(body.lora_path, settings.adapter_root, allowance)
        installed = await services.library.install(tenant, name, folder, expected=if_match(request))
    if installed.version is not None:
        note_load(request, installed.before, installed.version)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post("/v1/unload_lora_adapter", openapi_extra=describes(UnloadLoraAdapterRequest))
async def unload_lora_adapter(
    request: Request,
    body: Annotated[UnloadLoraAdapterRequest, Depends(json_body(UnloadLoraAdapterRequest))],
) -> Response:
    """Removes an adapter."""
    services, tenant, name = services_of(request), request.state.tenant, body.lora_name
    note(request, name=name)
    try:
        note_version(request, services.registry.lookup(tenant, name))
        await services.library.remove(tenant, name, if_match(request))
    except UnknownAdapter:
        values: dict[str, Any] = {"model": name[:128]}
        raise ApiError(ErrorCode.MODEL_NOT_FOUND, param="lora_name", values=values) from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _exists(request: Request, name: str) -> bool:
    try:
        services_of(request).registry.lookup(request.state.tenant, name)
    except UnknownAdapter:
        return False
    return True

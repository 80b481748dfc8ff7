"""Takes over a tenants file that changed, in all parts of the server that tenants concern."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from weft.adapters.tenancy import TenantContext
from weft.server.engine.client import EngineUnavailable
from weft.server.engine.page_tables import COMMON_SHARE
from weft.server.policy import Policy
from weft.server.services import Services
from weft.server.tenants_file import TenantsInvalid

log = logging.getLogger("weft.tenants")
# A look is one system call. Orchestrators swap a mounted file without telling anybody, so looking
# is better than waiting for a signal, which in a terminal also means that the terminal is gone.
LOOK_SECONDS = 1.0


async def follow(services: Services, welcome: Callable[[TenantContext], Awaitable[None]]) -> None:
    """Looks after the file for ever; `welcome` is awaited for each tenant that is new in it."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for tenant in await take_over(services):
            await welcome(tenant)


async def take_over(services: Services) -> tuple[TenantContext, ...]:
    """Puts the file's policy in force if it changed and can be used; returns who is new."""
    before, refusals = services.tenants.contexts, services.tenants.refusals
    changed = await asyncio.to_thread(services.tenants.refresh, lambda p: _check(services, p))
    if not changed:
        if services.tenants.refusals > refusals:
            services.audit.tell("tenants.reload", result="refused")
        return ()
    now = services.tenants.contexts
    for tenant in _without(before, now):
        services.library.retire(tenant)
    for tenant in _without(now, before):
        services.library.announce(tenant)
    services.engine.reserve(now)
    services.audit.tell("tenants.reload", {"tenants": len(now)})
    return _without(now, before)


def _without(
    tenants: tuple[TenantContext, ...], others: tuple[TenantContext, ...]
) -> tuple[TenantContext, ...]:
    known = {tenant.id for tenant in others}
    return tuple(tenant for tenant in tenants if tenant.id not in known)


def check_pages(policy: Policy, pages: int) -> None:
    """Raises TenantsInvalid where tenants are promised more KV pages than the engine has to give.

    pages: of the whole KV cache
    """
    promised = {t.id: t.kv_pages for t in policy.contexts if t.kv_pages is not None}
    most = pages - max(1, pages // COMMON_SHARE)
    if sum(promised.values()) > most:
        raise TenantsInvalid(
            [
                f"quotas.kv_pages of {', '.join(promised)} are {sum(promised.values())} together; "
                f"of this server's {pages} pages {most} can be given away"
            ]
        )


def _check(services: Services, policy: Policy) -> None:
    try:
        check_pages(policy, services.engine.info.pages)
    except EngineUnavailable:
        log.debug("the engine has not said yet how many pages there are")

"""Which requests are taken in: places of the server, and each tenant's quotas. Knows no routes.

What cannot be served is refused here, at once, rather than failing later.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from weft.adapters.tenancy import TenantContext
from weft.server.errors import ApiError, ErrorCode, invalid
from weft.server.policy import Quotas
from weft.server.quotas import Account
from weft.server.tenants import Tenants


class Visit:
    """A request that was admitted. used: tokens of it so far; charged but not used is given back"""

    def __init__(self, account: Account, sequences: int) -> None:
        self.used = 0
        self.charged = 0
        self._account = account
        self._sequences = sequences

    @asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[None]:
        """Charges `tokens`, all that may come, then waits for the tenant's turn to be computed.

        Raises ApiError where the tokens are too many now.
        """
        self._account.charge(tokens)
        self.charged = tokens
        async with self._account.turn(self._sequences):
            yield


class Admission:
    """Counts choices from admission to their end; refuses what would exceed `places` or quotas.

    One tenant may have all places while nobody else asks. Where they are taken, refusals fall on
    those who hold more than their share, by weight among those who are inside: others get theirs,
    beyond `places`, so that never more than twice as many are held, or one for each tenant.

    starting: adapters that are to be there from the beginning are still loading
    """

    def __init__(
        self, places: int, tenants: Tenants, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: seconds, monotonic"""
        self.places = places
        self.inside = 0
        self.starting = False
        self.draining = False
        self._tenants = tenants
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._weights: dict[Account, float] = {}  # of those that hold places
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self, tenant: TenantContext, sequences: int) -> Iterator[Visit]:
        """Holds places for so many choices of a request; raises ApiError where it cannot now."""
        if self.draining:
            raise ApiError(ErrorCode.DRAINING)
        account = self._account(tenant)
        self._check_places(tenant, account, sequences)
        account.count_request()
        self.inside += sequences
        account.inside += sequences
        self._weights[account] = self._weight(tenant)
        self._empty.clear()
        visit = Visit(account, sequences)
        try:
            yield visit
        finally:
            account.give_back(max(visit.charged - visit.used, 0))
            account.inside -= sequences
            self.inside -= sequences
            if not account.inside:
                del self._weights[account]
            if not self.inside:
                self._empty.set()

    async def pay(self, tenant: TenantContext, tokens: int) -> None:
        """Charges tokens of work that can wait, when the tenant has as many left."""
        await self._account(tenant).pay(tokens)

    def drain(self) -> None:
        """Admits nothing more; what is inside goes on."""
        self.draining = True

    async def empty(self) -> None:
        """Waits until nothing is inside."""
        await self._empty.wait()

    def _check_places(self, tenant: TenantContext, account: Account, sequences: int) -> None:
        quotas = self._quotas(tenant)
        concurrent, queued = quotas.concurrent_requests, quotas.queued_requests
        at_a_time = self.places if concurrent is None else min(concurrent, self.places)
        if sequences > at_a_time:
            raise invalid("n", f"asks for {sequences} choices, {at_a_time} can be taken at a time")
        held = account.inside + sequences
        free = self.places - self.inside
        own_line = concurrent is not None and queued is not None and held > concurrent + queued
        if own_line or (sequences > free and held > self._share(tenant, account)):
            raise ApiError(ErrorCode.QUEUE_FULL)

    def _share(self, tenant: TenantContext, account: Account) -> float:
        """The places that are the tenant's while the others who hold some want theirs."""
        weight = self._weight(tenant)
        present = self._weights | {account: weight}
        return max(1.0, self.places * weight / sum(present.values()))

    def _weight(self, tenant: TenantContext) -> float:
        return self._tenants.policy.of(tenant).context.weight

    def _account(self, tenant: TenantContext) -> Account:
        """Whom a proxy names at an open server has no quotas, so nothing to remember."""
        known = self._tenants.policy.tenants
        key = tenant.account if tenant.account in known else ""
        if key not in self._accounts:
            self._accounts[key] = Account(lambda: self._quotas(tenant), self._clock)
        return self._accounts[key]

    def _quotas(self, tenant: TenantContext) -> Quotas:
        return self._tenants.policy.of(tenant).quotas

"""Texts become tokens beside the event loop; nobody's long ones keep others' short ones waiting."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from weft.adapters.tenancy import TenantContext

LONG = 64 * 1024
"""Characters, or token ids, that take tens of milliseconds."""
P = ParamSpec("P")
T = TypeVar("T")


class Reading:
    """Calls what reads or writes texts in a thread. Of each tenant one long text at a time.

    There are few threads, and all short work waits for one of them.
    """

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __call__(
        self,
        tenant: TenantContext,
        length: int,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The function's result. length: of all texts, in characters, or in tokens"""
        if length < LONG:
            return await asyncio.to_thread(function, *args, **kwargs)
        turn = self._turns.setdefault(tenant.account, asyncio.Lock())
        async with turn:
            return await asyncio.to_thread(function, *args, **kwargs)

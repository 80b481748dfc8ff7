"""Counts usage in memory until it is written. Thread-safe; knows no file."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from weft.adapters.tenancy import TenantContext
from weft.server.engine.messages import AdapterState, Tokens
from weft.server.usage.counts import Counts, UsageKey, Used

HOUR = 3600
Row = tuple[int, UsageKey]
"""The hour that usage falls in, by its first second since 1970, and whose it is."""


class Tab:
    """What one request used. It counts as a request once something of it was computed."""

    def __init__(self, add: Callable[[Counts], None]) -> None:
        self._add = add
        self._counted = False

    def charge(self, *, prompt: int = 0, cached: int = 0, completion: int = 0) -> None:
        """Adds tokens; `cached` of `prompt` were not computed but found."""
        if prompt or cached or completion:
            self._add(Counts(not self._counted, prompt, cached, completion))
            self._counted = True


class Bill:
    """What one prompt's children used: tokens of `prompt` once, however many children it has."""

    def __init__(self, tab: Tab, prompt: int) -> None:
        self._tab = tab
        self._prompt = prompt
        self._computed = 0
        self._cached = 0

    def add(self, event: Tokens) -> None:
        """Charges what an event tells, answered or not."""
        self.reach(event)
        self._tab.charge(completion=len(event.tokens))

    def reach(self, event: Tokens) -> None:
        """Charges the prompt: all of it with its first token, else as far as it was computed."""
        ended = event.finish in ("error", "abort")
        computed = max(self._computed, event.computed_tokens if ended else self._prompt)
        cached = max(self._cached, min(event.cached_tokens, computed))
        self._tab.charge(prompt=computed - self._computed, cached=cached - self._cached)
        self._computed, self._cached = computed, cached

    def complete(self, tokens: int) -> None:
        """Charges tokens that a choice took."""
        self._tab.charge(completion=tokens)


class Meter:
    """Usage since it was last taken, by hour, and since the start, by tenant and adapter.

    clock: seconds since 1970   monotonic: seconds
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._rows: dict[Row, Counts] = {}
        self._totals: dict[tuple[str, str], Counts] = {}
        self._sampled: float | None = None

    def tab(self, tenant: TenantContext, used: Used) -> Tab:
        """For one request; work of a tenant in the background is the tenant's too."""
        key = UsageKey(tenant.account, *used)
        return Tab(lambda counts: self.add(key, counts))

    def add(self, key: UsageKey, counts: Counts) -> None:
        """Counts at the present hour."""
        now = int(self._clock())
        with self._lock:
            self._rows.setdefault((now - now % HOUR, key), Counts()).add(counts)
            self._totals.setdefault((key.tenant, key.adapter), Counts()).add(counts)

    def sample(
        self,
        states: Iterable[AdapterState],
        names: Callable[[str], Iterable[tuple[str, str]]],
    ) -> None:
        """Charges what is on the device for the time since the last sample, each owner in full.

        Who else stores the same bytes thus changes nobody's bill. names: of a digest, as tenant and
        name; of several names of one tenant the first one stands for all
        """
        now = self._monotonic()
        before, self._sampled = self._sampled, now
        if before is None:
            return
        for state in states:
            if state.tier == "device":
                counts = Counts(byte_seconds=state.bytes * (now - before))
                owners: dict[str, str] = {}
                for tenant, name in names(state.digest):
                    owners.setdefault(tenant, name)
                for tenant, name in owners.items():
                    self.add(UsageKey(tenant, name, state.digest), counts)

    def skip(self) -> None:
        """Nothing is known of the device since the last sample, and nothing is charged for it."""
        self._sampled = None

    def take(self) -> dict[Row, Counts]:
        """What was counted since the last time."""
        with self._lock:
            rows, self._rows = self._rows, {}
        return rows

    def put_back(self, rows: Mapping[Row, Counts]) -> None:
        """What was taken could not be written."""
        with self._lock:
            for row, counts in rows.items():
                self._rows.setdefault(row, Counts()).add(counts)

    def totals(self, keep: Callable[[str, str], bool]) -> dict[tuple[str, str], Counts]:
        """Numbers since the start by tenant and adapter; those not to `keep` begin again at 0."""
        with self._lock:
            self._totals = {key: c for key, c in self._totals.items() if keep(*key)}
            return dict(self._totals)

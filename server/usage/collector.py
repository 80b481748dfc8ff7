"""What Prometheus reads of usage, since the server started."""

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from weft.server.usage.counts import BASE
from weft.server.usage.meter import Meter

_LABELS = ("tenant", "adapter")
_FAMILIES = {
    "requests": "Requests of which something was computed.",
    "prompt_tokens": "Prompt tokens, cached ones included.",
    "cached_tokens": "Prompt tokens that the cache spared.",
    "completion_tokens": "Generated tokens.",
    "byte_seconds": "Bytes of the device that its adapters took, times seconds.",
}


class UsageCollector(Collector):
    """A set of series for each tenant and what it used.

    known: whether a tenant's word for an adapter is of a registered one; others have no series
    base_name: what the base is called
    """

    def __init__(self, meter: Meter, known: Callable[[str, str], bool], base_name: str) -> None:
        self._meter = meter
        self._known = known
        self._base_name = base_name

    def collect(self) -> Iterator[Metric]:
        """As they are now."""
        totals = self._meter.totals(self._known)
        for name, text in _FAMILIES.items():
            family = CounterMetricFamily(f"weft_usage_{name}", text, labels=_LABELS)
            for (user, adapter), counts in totals.items():
                label = self._base_name if adapter == BASE else adapter
                family.add_metric([user, label], getattr(counts, name))
            yield family

"""What Prometheus reads of the tenants file."""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from weft.server.tenants import Tenants


class TenantsCollector(Collector):
    """How many tenants there are, and whether the file that says so is in force."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        """As they are now."""
        tenants = self._tenants
        yield GaugeMetricFamily("weft_tenants", "Tenants.", len(tenants.contexts))
        yield GaugeMetricFamily(
            "weft_tenants_file_valid",
            "0 while the file is not in force as it is now, because of a fault in it.",
            float(tenants.valid),
        )
        reloads = CounterMetricFamily(
            "weft_tenants_reloads", "Times that the file changed.", labels=["outcome"]
        )
        reloads.add_metric(["applied"], tenants.reloads)
        reloads.add_metric(["refused"], tenants.refusals)
        yield reloads

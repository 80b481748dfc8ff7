"""What Prometheus reads of the audit log."""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from weft.server.audit.audit import Audit


class AuditCollector(Collector):
    """How many events the log lacks, for an alert."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def collect(self) -> Iterator[Metric]:
        """As it is now."""
        yield CounterMetricFamily(
            "weft_audit_failures", "Events that the disk did not take.", self._audit.failures
        )

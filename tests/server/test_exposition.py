"""The text that Prometheus reads, against prometheus_client's own parser and writer."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from weft.server.adapter_series import AdapterCounts, AdapterLabel, AdapterSeries
from weft.server.engine.messages import AdapterState
from weft.server.exposition import Family, exposition, label_set

ODD = 'a "quoted" name\\with\nlines'
VALUES = (0, 3, 2**60, 0.1, 1e-9, 1.5e300)


def parsed(text: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(text.decode()))


def written_by_prometheus_client(*families: Metric) -> list[Metric]:
    class Fixed(Collector):
        def collect(self) -> tuple[Metric, ...]:
            return families

    registry = CollectorRegistry()
    registry.register(Fixed())
    return parsed(generate_latest(registry))


@pytest.mark.parametrize("value", VALUES)
def test_families_read_as_those_of_prometheus_client(value: float) -> None:
    labels = ["tenant", "adapter"]
    counter = CounterMetricFamily("c", "Counted.", labels=labels)
    gauge = GaugeMetricFamily("g", "Now.", labels=labels)
    summary = SummaryMetricFamily("s", "Of both.", labels=labels)
    samples = []
    for name in (ODD, "plain"):
        counter.add_metric(["acme", name], value)
        gauge.add_metric(["acme", name], value)
        summary.add_metric(["acme", name], count_value=7, sum_value=value)
        samples.append((label_set(tenant="acme", adapter=name), value))
    ours = exposition(
        [
            Family("c_total", "counter", "Counted.", {"": samples}),
            Family("g", "gauge", "Now.", {"": samples}),
            Family(
                "s",
                "summary",
                "Of both.",
                {"_count": [(labels, 7) for labels, _ in samples], "_sum": samples},
            ),
        ]
    )
    expected = written_by_prometheus_client(counter, gauge, summary)
    for found, wanted in zip(parsed(ours), expected, strict=True):
        assert (found.name, found.type, found.documentation) == (
            wanted.name,
            wanted.type,
            wanted.documentation,
        )
        assert sorted(found.samples, key=str) == sorted(wanted.samples, key=str)


def test_adapters_may_be_registered_while_they_are_read() -> None:
    counts = {AdapterLabel("acme", "old"): AdapterCounts("d0", requests=4)}
    states = {
        "d0": AdapterState("d0", "device", 2, 100, False),
        "d1": AdapterState("d1", "disk", 0, 0, False),
    }

    def evictions() -> dict[str, int]:
        counts[AdapterLabel("acme", "new")] = AdapterCounts("d1")
        return {"d0": 3}

    series = AdapterSeries(counts, lambda: states, lambda: 8, evictions)
    names = {
        sample.labels.get("adapter")
        for family in parsed(exposition(series.families()))
        for sample in family.samples
    }
    assert names == {"old", None}
    found = {
        (sample.name, sample.labels.get("adapter")): sample.value
        for family in parsed(exposition(series.families()))
        for sample in family.samples
    }
    assert found["weft_adapter_requests_total", "old"] == 4
    assert found["weft_adapter_evictions_total", "old"] == 3
    assert found["weft_adapter_requests_total", "new"] == 0
    assert found["weft_adapter_refs", "old"] == 2

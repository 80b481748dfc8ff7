"""What Prometheus reads. Labels are registered adapters and route templates, nothing else.

Names that routers already read are vLLM's; the rest begin with `weft_`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from weft.server.adapter_series import AdapterCounts, AdapterLabel, AdapterSeries
from weft.server.engine.messages import AdapterState, Stats
from weft.server.exposition import Family, exposition

_TTFT = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 20.0, 40.0)
_ITL = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0)
_E2E = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)


class Metrics:
    """All series of one server, in a registry of their own.

    model_name: the base's name in the API   stats: the engine's latest, None while it is away
    slots: how many adapters the device holds at a time   evictions: from there, by digest
    """

    def __init__(
        self,
        model_name: str,
        stats: Callable[[], Stats | None],
        slots: Callable[[], int],
        evictions: Callable[[], Mapping[str, int]],
    ) -> None:
        self.model_name = model_name
        self.stats = stats
        self.adapters: dict[AdapterLabel, AdapterCounts] = {}
        self._latest: Stats | None = None
        self._states: dict[str, AdapterState] = {}
        self._registry = CollectorRegistry()
        self.time_to_first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT
        )
        self.queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "Arrival to the first step.", _TTFT
        )
        self.inter_token_latency = self._histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of an answer.", _ITL
        )
        self.e2e_latency = self._histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to last token.", _E2E
        )
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Generated tokens.")
        self._answers = Counter(
            "weft_http_answers",
            "Answers by route template, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(self))
        self._series: list[Callable[[], Iterable[Family]]] = [
            AdapterSeries(self.adapters, self.states, slots, evictions).families
        ]

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(name, text, ("model_name",), buckets=buckets, registry=self._registry)
        return family.labels(self.model_name)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ("model_name",), registry=self._registry).labels(self.model_name)

    def add(self, collector: Collector) -> None:
        """Takes in the series of another part of the server."""
        self._registry.register(collector)

    def add_series(self, families: Callable[[], Iterable[Family]]) -> None:
        """The same, where there are as many as adapters."""
        self._series.append(families)

    def render(self) -> bytes:
        """Prometheus' text format."""
        many = (family for families in self._series for family in families())
        return generate_latest(self._registry) + exposition(many)

    def answered(self, route: str, method: str, status: int) -> None:
        """Counts an answer; `route` is a template, never a path."""
        self._answers.labels(route, method, str(status)).inc()

    def register(self, label: AdapterLabel, digest: str) -> None:
        """From now on there are series about this adapter, whose version is `digest`."""
        self.seen(label, digest)
        self.adapters[label].digest = digest

    def seen(self, label: AdapterLabel, digest: str) -> None:
        """A request uses a registered adapter, by this version or by an older one."""
        self.adapters.setdefault(label, AdapterCounts(digest))

    def forget(self, label: AdapterLabel) -> None:
        """The adapter was removed: its series go away, and late requests don't bring them back."""
        self.adapters.pop(label, None)

    def states(self) -> dict[str, AdapterState]:
        """Where each version is, by digest, as the engine last said."""
        stats = self.stats()
        if stats is not self._latest:
            self._latest = stats
            self._states = {state.digest: state for state in stats.adapters} if stats else {}
        return self._states


class RequestTimer:
    """One request's times and counts, from its arrival on."""

    def __init__(self, metrics: Metrics, versions: Mapping[AdapterLabel, str]) -> None:
        """versions: digests of the versions that answer, by their adapters."""
        self._metrics = metrics
        self._labels = tuple(versions)
        self._arrival = self._begun = time.monotonic()
        self._last: dict[int, float] = {}
        for label, digest in versions.items():
            state, counts = metrics.states().get(digest), metrics.adapters.get(label)
            if state is not None and state.tier == "device" and counts is not None:
                counts.hits += 1

    def begin(self) -> None:
        """The request goes to the engine: it has its turn among its tenant's own."""
        self._begun = time.monotonic()

    def token(self, choice: int) -> None:
        """A choice got one or more tokens."""
        now = time.monotonic()
        if not self._last:
            self._first(now - self._arrival)
        if choice in self._last:
            self._metrics.inter_token_latency.observe(now - self._last[choice])
        self._last[choice] = now

    def end(self, prompt_tokens: int, generation_tokens: int, queued: float) -> None:
        """The request is over, one way or another; `queued`: seconds that it waited in the engine.

        One that got no token counts for nothing.
        """
        if not self._last:
            return
        queued += self._begun - self._arrival
        self._metrics.queue_time.observe(queued)
        self._metrics.e2e_latency.observe(time.monotonic() - self._arrival)
        self._metrics.prompt_tokens.inc(prompt_tokens)
        self._metrics.generation_tokens.inc(generation_tokens)
        for counts in self._counts():
            counts.requests += 1
            counts.queue_seconds += queued
            counts.prompt_tokens += prompt_tokens
            counts.generation_tokens += generation_tokens

    def _counts(self) -> Iterator[AdapterCounts]:
        """Of the adapters that were not removed meanwhile."""
        adapters = self._metrics.adapters
        return (adapters[label] for label in self._labels if label in adapters)

    def _first(self, seconds: float) -> None:
        self._metrics.time_to_first_token.observe(seconds)
        for counts in self._counts():
            counts.first_tokens += 1
            counts.first_token_seconds += seconds


class _EngineCollector(Collector):
    """The engine's own numbers, read from its latest Stats when Prometheus asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        stats = self._metrics.stats()
        if stats is None:
            return
        used = stats.total_pages - stats.free_pages - stats.cached_pages
        gauges = {
            "vllm:num_requests_running": ("Sequences being computed.", stats.running),
            "vllm:num_requests_waiting": ("Sequences that wait.", stats.waiting),
            "vllm:kv_cache_usage_perc": (
                "Share of KV pages in use, 0 to 1.",
                used / max(stats.total_pages, 1),
            ),
        }
        counters = {
            "vllm:prefix_cache_queries": ("Prompt tokens looked up.", stats.prefix_queries),
            "vllm:prefix_cache_hits": ("Prompt tokens found.", stats.prefix_hits),
            "vllm:num_preemptions": ("Sequences put back for want of pages.", stats.preemptions),
            "vllm:spec_decode_num_draft_tokens": ("Drafts that were checked.", stats.drafted),
            "vllm:spec_decode_num_accepted_tokens": ("Those that were right.", stats.accepted),
            "weft_steps": ("Forward passes.", stats.steps),
            "weft_adapter_loads": ("Adapters read and lowered.", stats.loads),
            "weft_adapter_loading_seconds": ("Time spent so.", stats.load_seconds),
            "weft_evictions": ("Adapters that left the device for others.", stats.evictions),
        }
        label = [self._metrics.model_name]
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric(label, value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric(label, value)
            yield counter

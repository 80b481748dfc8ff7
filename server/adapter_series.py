"""What is counted for registered adapters, and the series that Prometheus reads of each.

A series is there from the registration on: one that came with its first increment would hide that
increment from `rate`. Ten thousand adapters have 130,000.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from weft.server.engine.messages import AdapterState
from weft.server.exposition import Family, Sample, label_set

_TIERS = ("device", "host", "disk")


class AdapterLabel(NamedTuple):
    """The registered adapter that a series is about."""

    tenant: str
    adapter: str


@dataclass
class AdapterCounts:
    """What is counted for one registered adapter since the server started."""

    digest: str
    requests: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    queue_seconds: float = 0.0
    load_seconds: float = 0.0


Counted = list[tuple[AdapterLabel, AdapterCounts]]


class AdapterSeries:
    """One set of series for each registered adapter; others may be registered meanwhile.

    counts: of the registered adapters   states: where each version is, by digest
    slots: how many adapters the device holds at a time   evictions: from there, by digest
    """

    def __init__(
        self,
        counts: Mapping[AdapterLabel, AdapterCounts],
        states: Callable[[], Mapping[str, AdapterState]],
        slots: Callable[[], int],
        evictions: Callable[[], Mapping[str, int]],
    ) -> None:
        self._counts = counts
        self._states = states
        self._slots = slots
        self._evictions = evictions

    def families(self) -> Iterator[Family]:
        """As they are now."""
        counted = list(self._counts.items())
        yield from _counted(counted, self._evictions())
        states = self._states()
        placed = [
            (label, states[counts.digest]) for label, counts in counted if counts.digest in states
        ]
        yield from _placed(placed)
        yield self._info(placed)

    def _info(self, placed: list[tuple[AdapterLabel, AdapterState]]) -> Family:
        """vLLM's gauge for routers that prefer a server where the adapter is at work already."""
        running = sorted({label.adapter for label, state in placed if state.refs})
        labels = label_set(
            max_lora=str(self._slots()),
            running_lora_adapters=",".join(running),
            waiting_lora_adapters="",
        )
        name, text = "vllm:lora_requests_info", "Adapters with running requests."
        return Family(name, "gauge", text, {"": [(labels, time.time())]})


def _counted(counted: Counted, evicted: Mapping[str, int]) -> Iterator[Family]:
    labels = [label_set(**label._asdict()) for label, _ in counted]

    def each(value: Callable[[AdapterCounts], float]) -> Iterator[Sample]:
        return ((text, value(counts)) for text, (_, counts) in zip(labels, counted, strict=True))

    def counter(name: str, text: str, value: Callable[[AdapterCounts], float]) -> Family:
        return Family(f"weft_adapter_{name}_total", "counter", text, {"": each(value)})

    yield counter("requests", "Requests.", lambda one: one.requests)
    yield counter("hits", "Requests that found it on the device.", lambda one: one.hits)
    yield counter("prompt_tokens", "Prompt tokens.", lambda one: one.prompt_tokens)
    yield counter("generation_tokens", "Generated tokens.", lambda one: one.generation_tokens)
    yield counter(
        "evictions",
        "Times that its current version left the device for others.",
        lambda one: evicted.get(one.digest, 0),
    )
    yield Family(
        "weft_adapter_load_seconds",
        "gauge",
        "Duration of its last load.",
        {"": each(lambda one: one.load_seconds)},
    )
    yield Family(
        "weft_adapter_time_to_first_token_seconds",
        "summary",
        "Arrival to first token.",
        {
            "_count": each(lambda one: one.first_tokens),
            "_sum": each(lambda one: one.first_token_seconds),
        },
    )
    yield Family(
        "weft_adapter_queue_seconds",
        "summary",
        "Arrival to the first step, the wait for the adapter itself included.",
        {
            "_count": each(lambda one: one.requests),
            "_sum": each(lambda one: one.queue_seconds),
        },
    )


def _placed(placed: list[tuple[AdapterLabel, AdapterState]]) -> Iterator[Family]:
    labels = [label_set(**label._asdict()) for label, _ in placed]
    states = [state for _, state in placed]
    tiers = [
        (label_set(**label._asdict(), tier=tier), int(state.tier == tier))
        for label, state in placed
        for tier in _TIERS
    ]
    yield Family("weft_adapter_tier", "gauge", "1 for where it is now.", {"": tiers})
    sizes = zip(labels, (state.bytes for state in states), strict=True)
    yield Family("weft_adapter_bytes", "gauge", "Bytes that it takes there.", {"": sizes})
    refs = zip(labels, (state.refs for state in states), strict=True)
    yield Family("weft_adapter_refs", "gauge", "Running sequences.", {"": refs})

"""What Prometheus reads of usage, since the server started."""

from collections.abc import Callable, Iterator

from weft.server.exposition import Family, label_set
from weft.server.usage.counts import BASE
from weft.server.usage.meter import Meter

_FAMILIES = {
    "requests": "Requests of which something was computed.",
    "prompt_tokens": "Prompt tokens, cached ones included.",
    "cached_tokens": "Prompt tokens that the cache spared.",
    "completion_tokens": "Generated tokens.",
    "byte_seconds": "Bytes of the device that its adapters took, times seconds.",
}


def usage_series(
    meter: Meter, known: Callable[[str, str], bool], base_name: str
) -> Iterator[Family]:
    """A set of series for each tenant and what it used, as they are now.

    known: whether a tenant's word for an adapter is of a registered one; others have no series
    base_name: what the base is called
    """
    used = [
        (label_set(tenant=user, adapter=base_name if adapter == BASE else adapter), counts)
        for (user, adapter), counts in meter.totals(known).items()
    ]
    for name, text in _FAMILIES.items():
        samples = [(labels, getattr(counts, name)) for labels, counts in used]
        yield Family(f"weft_usage_{name}_total", "counter", text, {"": samples})

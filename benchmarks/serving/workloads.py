"""What is asked of the server, and when: pure functions of a load, the adapters' names and a seed.

S-LoRA: Sheng et al., "S-LoRA: Serving Thousands of Concurrent LoRA Adapters", MLSys 2024.
Punica: Chen et al., "Punica: Multi-Tenant LoRA Serving", MLSys 2024.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, cycle, islice, takewhile

from numpy.random import Generator, default_rng

from serving.request import Request

POPULARITIES = ("distinct", "uniform", "skewed", "identical")
COLD, WARM = "cold", "warm"
_ZIPF = 1.5
_FIRST_ID = 3  # of the ids below, models make padding, beginning and end


@dataclass(frozen=True)
class Load:
    """How much is asked.

    rate: requests a second, on average, for so many seconds
    cv: coefficient of variation of the gaps between requests; 1 is a Poisson process
    alpha: exponent of S-LoRA's power law of popularity
    prompt, answer: the least and the most tokens, of which each request's are drawn evenly
    vocabulary: how many token ids there are
    """

    rate: float
    seconds: float
    seed: int
    cv: float = 1.0
    prompt: tuple[int, int] = (8, 64)
    answer: tuple[int, int] = (8, 64)
    vocabulary: int = 1024
    alpha: float = 1.0


def s_lora(load: Load, adapters: Sequence[str]) -> list[Request]:
    """S-LoRA's synthetic workload.

    Adapter i of n has the share ((i + 1) / n)^alpha - (i / n)^alpha of the requests: a power law,
    even for an alpha of 1 and the more skewed the smaller it is. The gaps between requests are
    gamma distributed with shape 1 / cv² and scale cv² / rate; lengths are uniform.
    """
    random = default_rng(load.seed)
    times = _times(load, random)
    drawn = (random.power(load.alpha, len(times)) * len(adapters)).astype(int)
    return [
        _request(load, random, adapters[index], at)
        for index, at in zip(drawn.tolist(), times, strict=True)
    ]


def punica(load: Load, adapters: Sequence[str], popularity: str) -> list[Request]:
    """Punica's workloads of n requests, by how popular adapters are.

    distinct    each request has another adapter, as far as there are any: then they come in turn
    uniform     ⌈√n⌉ adapters are asked for equally often
    skewed      each adapter is asked for 1.5 times as often as the next one ("Zipf-1.5")
    identical   one adapter

    Raises ValueError where `adapters` are too few for that.
    """
    random = default_rng(load.seed)
    times = _times(load, random)
    if popularity == "distinct":
        names = list(islice(cycle(adapters), len(times)))
    else:
        shares = _shares(popularity, len(times))
        if len(shares) > len(adapters):
            raise ValueError(
                f"{len(times)} requests of {popularity} popularity need {len(shares)} adapters, "
                f"and there are {len(adapters)}"
            )
        groups = zip(adapters, shares, strict=False)
        names = [name for name, share in groups for _ in range(share)]
        random.shuffle(names)
    return [_request(load, random, name, at) for name, at in zip(names, times, strict=True)]


def cold_stream(
    load: Load, warm: Sequence[str], cold: Sequence[str], every: float
) -> list[Request]:
    """Warm traffic, and beside it, every so many seconds, an adapter that was never asked for.

    Raises ValueError where `cold` are too few for that.
    """
    random = default_rng(load.seed)
    cold_times = list(takewhile(lambda at: at < load.seconds, count(0.0, every)))
    if len(cold_times) > len(cold):
        raise ValueError(f"{len(cold_times)} cold adapters are needed, and there are {len(cold)}")
    times = _times(load, random)
    chosen = random.integers(len(warm), size=len(times)).tolist()
    requests = [
        replace(_request(load, random, warm[index], at), kind=WARM)
        for index, at in zip(chosen, times, strict=True)
    ]
    requests += [
        replace(_request(load, random, name, at), kind=COLD)
        for name, at in zip(cold, cold_times, strict=False)
    ]
    return sorted(requests, key=lambda request: request.at or 0.0)


def shared_prefix(
    load: Load, adapters: Sequence[str], prefix: int, *, shared: bool
) -> list[Request]:
    """Prompts that begin with `prefix` tokens, such as a tenant's instructions, and go on anew.

    shared: those tokens are the same in all requests for an adapter; else no two requests have
    them in common, and nothing but that is different
    """
    random, others = default_rng(load.seed), default_rng((load.seed, 1))
    times = _times(load, random)
    chosen = random.integers(len(adapters), size=len(times)).tolist()
    own = [_prompt(load, others, prefix) for _ in adapters]
    begins = [own[index] if shared else _prompt(load, others, prefix) for index in chosen]
    return [
        _request(load, random, adapters[index], at, begin)
        for index, at, begin in zip(chosen, times, begins, strict=True)
    ]


def _times(load: Load, random: Generator) -> list[float]:
    """When requests come, in order, all before the load's end."""
    shape, scale = 1 / load.cv**2, load.cv**2 / load.rate

    def gaps() -> Iterator[float]:
        while True:
            yield float(random.gamma(shape, scale))

    before_end = takewhile(lambda at: at < load.seconds, accumulate(gaps()))
    return list(before_end)


def _shares(popularity: str, total: int) -> list[int]:
    """How many of `total` requests each adapter gets, most first."""
    if popularity == "identical":
        return [total]
    if popularity == "uniform":
        adapters = math.ceil(math.sqrt(total))
        return [total // adapters + (index < total % adapters) for index in range(adapters)]
    if popularity != "skewed":
        raise ValueError(f"{popularity!r} is none of {', '.join(POPULARITIES)}")
    shares: list[int] = []
    while sum(shares) < total:
        shares.append(min(math.floor(_ZIPF ** len(shares)), total - sum(shares)))
    return sorted(shares, reverse=True)


def _request(
    load: Load, random: Generator, adapter: str, at: float, begin: tuple[int, ...] = ()
) -> Request:
    """A request of random lengths; begin: what its prompt has before that."""
    lengths = (load.prompt, load.answer)
    prompt, answer = (int(random.integers(least, most + 1)) for least, most in lengths)
    return Request(begin + _prompt(load, random, prompt), adapter, answer, at)


def _prompt(load: Load, random: Generator, length: int) -> tuple[int, ...]:
    return tuple(random.integers(_FIRST_ID, load.vocabulary, size=length).tolist())

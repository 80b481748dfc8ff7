"""What a tenant learns of another one's prompts by how long its own take: nothing, in steps."""

from itertools import product
from random import Random

from fake_residency import FakeResidency
from scheduling import World, limits, request

PROBES = 200
PROMPT = 48
"""Three steps where nothing is cached, one where all of it is."""
VICTIM, PROBER = "victim", "prober"


def prompt(number: int) -> list[int]:
    return Random(number).choices(range(1, 1000), k=PROMPT)


def probe(world: World, name: str, asked: list[int], tenant: str, adapter: str | None) -> int:
    """Steps until a prompt's answer."""
    world.scheduler.add(request(name, asked, 1, tenant=tenant, adapter=adapter))
    return world.until(lambda: (name, 0) in world.ended)


def area_under_curve(positive: list[int], negative: list[int]) -> float:
    """How well one number tells two kinds apart: 0.5 is not at all, 0 and 1 are always."""
    pairs = list(product(positive, negative))
    return sum((a < b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_no_probe_finds_out_what_another_tenant_has_asked() -> None:
    residency = FakeResidency(10, 1, {"shared": 10})
    world = World(limits(num_pages=120), residency)
    probe(world, "warm", [1], VICTIM, "shared")  # the adapter stays: only prompts differ
    seen: dict[str, list[int]] = {"said": [], "unsaid": [], "own": []}
    for number in range(PROBES):
        adapter = "shared" if number % 2 else None
        said, unsaid = prompt(2 * number), prompt(2 * number + 1)
        probe(world, f"said-{number}", said, VICTIM, adapter)
        kinds = {"said": (said, PROBER), "unsaid": (unsaid, PROBER), "own": (said, VICTIM)}
        order = list(kinds)
        Random(number).shuffle(order)
        for kind in order:
            asked, tenant = kinds[kind]
            name = f"{kind}-probe-{number}"
            seen[kind].append(probe(world, name, asked, tenant, adapter))
            assert (world.cached[name, 0] > 0) == (kind == "own")
    assert 0.4 <= area_under_curve(seen["said"], seen["unsaid"]) <= 0.6
    assert area_under_curve(seen["own"], seen["unsaid"]) > 0.9  # the probe is a sharp one

"""What tenants get beside each other, and who gives way."""

from collections import Counter
from collections.abc import Callable

import pytest
from scheduling import World, limits, request


def backlog(
    world: World, tenant: str, weight: float, prompt: int, answer: int
) -> Callable[[], None]:
    """Keeps more requests of a tenant waiting than can begin in a step."""
    number = 0

    def fill() -> None:
        nonlocal number
        waiting = sum(seq.tenant.id == tenant for seq in world.scheduler._queue)
        for _ in range(5 - waiting):
            number += 1
            world.scheduler.add(
                request(f"{tenant}-{number}", prompt, answer, tenant=tenant, weight=weight)
            )

    return fill


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize(("prompt", "answer"), [(40, 2), (4, 24), (60, 1)])
def test_two_backlogged_tenants_differ_by_a_bounded_number_of_tokens(
    weight: float, prompt: int, answer: int
) -> None:
    config = limits(max_num_seqs=4)
    world = World(config, root=None)
    light = backlog(world, "light", weight, 6, 6)
    heavy = backlog(world, "heavy", 1.0, prompt, answer)
    served: Counter[str] = Counter()
    reached: Counter[tuple[str, int]] = Counter()
    worst = 0.0
    for _ in range(2500):
        heavy()
        light()
        for item in world.step().items:
            seq, child = item.seq, (item.seq.request.id, item.seq.index)
            stop = item.start + item.count
            served[seq.tenant.id] += max(0, stop - max(item.start, reached[child]))
            reached[child] = max(reached[child], stop)
        worst = max(worst, abs(served["heavy"] - served["light"] / weight))
    longest = prompt + answer
    assert worst <= 2 * config.max_num_seqs * longest / min(1.0, weight)
    assert min(served.values()) > 20 * worst


def test_a_tenant_with_a_long_queue_does_not_delay_another_ones_first_token() -> None:
    world = World(limits(max_num_seqs=4))
    for number in range(50):
        world.scheduler.add(request(f"heavy-{number}", 30, max_tokens=4, tenant="heavy"))
    for _ in range(30):
        world.step()
    world.scheduler.add(request("light", 4, max_tokens=1, tenant="light"))
    assert world.until(lambda: ("light", 0) in world.ended) <= 10

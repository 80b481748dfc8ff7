"""One tenant asks for ten times its share: what seven light ones notice, counted in steps."""

from scheduling import World, limits, request

from weft.server.engine.step_plan import StepPlan

STEPS = 300
LIGHT = [f"light-{number}" for number in range(7)]
EVERY = 40
"""Steps between two requests of a light tenant: it computes about a third of its share."""
PROMPT, ANSWER, HEAVY_ANSWER = 100, 8, 16
BUDGET = 64
OVERLOAD = 2
"""Requests of the heavy one in a step: ten times and more what an eighth of the budget computes."""


def waits(world: World, *, heavy: bool) -> tuple[list[int], list[StepPlan]]:
    """Steps from arrival to first token of each light request, sorted; and all plans."""
    arrived: dict[str, int] = {}
    first: dict[str, int] = {}
    plans = []
    for step in range(STEPS):
        for number, tenant in enumerate(LIGHT):
            if step % EVERY == number * EVERY // len(LIGHT):
                name = f"{tenant}-{step}"
                arrived[name] = step
                world.scheduler.add(request(name, PROMPT, ANSWER, tenant=tenant))
        for number in range(OVERLOAD if heavy else 0):
            name = f"heavy-{step}-{number}"
            world.scheduler.add(request(name, PROMPT, HEAVY_ANSWER, tenant="heavy"))
        plans.append(plan := world.step())
        for item in plan.sampling:
            first.setdefault(item.seq.request.id, step)
    told = [name for name in arrived if arrived[name] < STEPS - EVERY]
    return sorted(first[name] - arrived[name] + 1 for name in told), plans


def test_seven_light_tenants_hardly_notice_one_that_asks_for_ten_times_its_share() -> None:
    config = limits(num_pages=2000, max_num_seqs=64, max_num_batched_tokens=BUDGET)
    world = World(config)
    quiet, _ = waits(World(config), heavy=False)
    loud, plans = waits(world, heavy=True)
    assert len(quiet) == len(loud) > 40
    assert loud[int(0.99 * len(loud))] <= 2 * quiet[int(0.99 * len(quiet))]
    # What the light ones leave is not lost: the heavy one gets it, and waits for the rest.
    rows = [plan.rows for plan in plans[10:]]
    assert sum(rows) >= 0.9 * BUDGET * len(rows)
    assert world.scheduler.waiting > STEPS

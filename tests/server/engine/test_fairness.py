"""Whose turn it is."""

from scheduling import request

from weft.server.engine.fairness import FairQueue
from weft.server.engine.sequence import Sequence


def anybody(_: Sequence) -> bool:
    return True


def nobody(_: Sequence) -> bool:
    return False


class Arrivals:
    """Makes sequences in the order of their arrival."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, tenant: str, tokens: int = 10, weight: float = 1.0) -> Sequence:
        self.number += 1
        asked = request(f"{tenant}-{self.number}", tokens, tenant=tenant, weight=weight)
        return Sequence(asked, 0, self.number, list(asked.prompt))


def serve(queue: FairQueue) -> str:
    """Lets the next one compute all it has; returns its tenant."""
    seq = queue.least_served((), anybody)
    assert seq is not None
    queue.remove(seq)
    queue.charge(seq, len(seq.tokens))
    return seq.tenant.id


def test_first_come_first_served_inside_a_tenant() -> None:
    queue, arrive = FairQueue(), Arrivals()
    seqs = [arrive("a") for _ in range(4)]
    for seq in (seqs[2], seqs[0], seqs[3], seqs[1]):
        queue.push(seq)
    assert list(queue) == seqs


def test_tenants_alternate_whatever_the_order_of_arrival() -> None:
    queue, arrive = FairQueue(), Arrivals()
    for tenant in "aaabbb":
        queue.push(arrive(tenant))
    assert [serve(queue) for _ in range(6)] == list("ababab")


def test_tokens_count_not_requests() -> None:
    queue, arrive = FairQueue(), Arrivals()
    for tenant, tokens in [("a", 30), ("a", 30), *[("b", 10)] * 6]:
        queue.push(arrive(tenant, tokens))
    assert [serve(queue) for _ in range(8)] == list("abbbabbb")


def test_a_weight_of_two_is_served_twice_as_much() -> None:
    queue, arrive = FairQueue(), Arrivals()
    for tenant, weight in [("a", 1.0), ("b", 2.0)] * 30:
        queue.push(arrive(tenant, weight=weight))
    assert [serve(queue) for _ in range(30)].count("b") == 20


def test_idle_time_saves_up_no_credit() -> None:
    queue, arrive = FairQueue(), Arrivals()
    for _ in range(20):
        queue.push(arrive("a"))
    for _ in range(10):
        serve(queue)
    for _ in range(10):
        queue.push(arrive("b"))
    assert sorted(serve(queue) for _ in range(4)) == list("aabb")


def test_who_comes_to_an_empty_queue_starts_at_the_level_of_the_last_to_leave() -> None:
    queue, arrive = FairQueue(), Arrivals()
    for _ in range(2):
        queue.push(arrive("a", 500))
    assert serve(queue) + serve(queue) == "aa"  # left at 500, and has been given 1000 by now
    for tenant in ["b"] * 9 + ["a"]:
        queue.push(arrive(tenant, 100))
    assert "".join(serve(queue) for _ in range(10)) == "bbbbbbabbb"


def test_a_debt_is_kept() -> None:
    queue, arrive = FairQueue(), Arrivals()
    queue.push(arrive("a", 100))
    queue.push(arrive("b", 10))
    assert (serve(queue), serve(queue)) == ("a", "b")
    for tenant in "bab":
        queue.push(arrive(tenant))
    assert [serve(queue) for _ in range(3)] == list("bba")


def test_what_was_begun_competes_with_what_is_queued() -> None:
    queue, arrive = FairQueue(), Arrivals()
    begun, queued = arrive("a", 100), arrive("b")
    queue.push(queued)
    assert queue.least_served([begun], anybody) is begun
    queue.charge(begun, 16)
    assert queue.least_served([begun], anybody) is queued
    assert queue.least_served([begun], nobody) is begun
    assert queue.least_served([], nobody) is None


def test_nothing_is_paid_for_twice() -> None:
    queue, arrive = FairQueue(), Arrivals()
    mine, yours = arrive("a", 40), arrive("b", 40)
    queue.charge(mine, 20)
    mine.computed = 0  # preempted: the same 20 tokens again
    queue.charge(mine, 20)
    yours.computed = 20  # found in the prefix cache
    queue.charge(yours, 40)
    assert queue.least_served([yours, mine], nobody) is mine  # 20 each: first come

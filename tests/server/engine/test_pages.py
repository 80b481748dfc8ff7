"""KV pages: who owns them, and what they are found by."""

from collections import Counter

import pytest
from histories import histories
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from weft.server.engine.pages import Content, PagePool

PAGES = 8


def content(name: int) -> Content:
    return Content(bytes([name]), (name, name))


def test_a_pool_gives_out_its_own_pages_only() -> None:
    assert sorted(PagePool([2, 5, 7]).take(3)) == [2, 5, 7]


def test_pages_go_from_one_pool_to_another_with_nothing_to_be_found_in_them() -> None:
    one, two = PagePool(range(1, 5)), PagePool([5])
    first, second = one.take(2)
    one.publish(first, content(1))
    one.release([first])
    two.receive(one.give_up(3))
    assert (one.total, one.available, one.find(content(1))) == (1, 0, None)
    assert (two.total, two.free) == (4, 4)
    assert one.check() == two.check() == ()
    one.release([second])
    two.receive(one.give_up(1))
    assert (one.total, one.check(), two.total) == (0, (), 5)


def test_pages_are_freed_by_their_last_references() -> None:
    pool = PagePool(range(1, 5))
    own, shared, kept = pool.take(3)
    pool.share([shared, kept])
    assert pool.freed_by([own, shared, shared, kept]) == {own, shared}
    assert pool.freed_by([]) == set()


def test_taking_more_than_available_takes_nothing() -> None:
    pool = PagePool(range(1, 4))
    with pytest.raises(ValueError, match="4 pages wanted, 3 available"):
        pool.take(4)
    assert pool.free == 3


def test_releasing_more_often_than_referenced_is_an_error() -> None:
    pool = PagePool(range(1, 4))
    pages = pool.take(1)
    pool.release(pages)
    with pytest.raises(ValueError, match="released more often"):
        pool.release(pages)


def test_a_published_page_is_found_until_its_page_is_needed() -> None:
    pool = PagePool(range(1, 3))
    first, second = pool.take(2)
    pool.publish(first, content(1))
    pool.release([first, second])
    assert (pool.free, pool.cached) == (1, 1)
    assert pool.find(content(1)) == first
    pool.take(2)
    assert pool.find(content(1)) is None


def test_a_key_alone_finds_nothing_where_the_tokens_differ() -> None:
    pool = PagePool(range(1, 3))
    (page,) = pool.take(1)
    pool.publish(page, Content(b"key", (1, 2)))
    assert pool.find(Content(b"key", (1, 3))) is None


def test_the_first_page_with_a_key_keeps_it() -> None:
    pool = PagePool(range(1, 4))
    first, second = pool.take(2)
    pool.publish(first, content(1))
    pool.publish(second, content(1))
    pool.release([first, second])
    assert (pool.find(content(1)), pool.cached) == (first, 1)


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    pool = PagePool(range(1, 4))
    pages = pool.take(3)
    for number, page in enumerate(pages):
        pool.publish(page, content(number))
    pool.release(pages)
    pool.take(1)
    assert [pool.find(content(number)) is not None for number in range(3)] == [True, True, False]


def test_idle_pages_are_those_that_sharing_takes_from_what_is_available() -> None:
    pool = PagePool(range(1, 4))
    pages = pool.take(2)
    for number, page in enumerate(pages):
        pool.publish(page, content(number))
    pool.release(pages[:1])
    assert pool.idle(pages) == 1
    before = pool.available
    pool.share(pages)
    assert pool.available == before - 1


@pytest.mark.parametrize(
    ("breakage", "name"),
    [
        (lambda pool: pool._free.append(1), "each in one set"),
        (lambda pool: pool._free.pop(), "= total"),
        (lambda pool: pool._free.append(0), "page 0"),
        (lambda pool: pool._references.__setitem__(2, -1), "negative"),
        (lambda pool: pool._cached.update({5: None}), "have content"),
        (lambda pool: pool._content.update({6: content(3)}), "have none"),
        (lambda pool: pool._page_of.update({b"x": 1}), "one to one"),
    ],
)
def test_the_check_names_what_is_broken(breakage: object, name: str) -> None:
    pool = PagePool(range(1, PAGES))
    pool.take(1)
    breakage(pool)  # type: ignore[operator]
    assert any(name in broken for broken in pool.check())


class PoolMachine(RuleBasedStateMachine):
    """The pool against a multiset of owners and a dict of contents."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(range(1, PAGES))
        self.owned: Counter[int] = Counter()
        self.published: dict[int, Content] = {}

    @rule(count=st.integers(0, PAGES))
    def take(self, count: int) -> None:
        if count > self.pool.available:
            return
        pages = self.pool.take(count)
        assert len(set(pages)) == count
        assert not set(pages) & self.owned.keys()
        self.owned.update(pages)
        self.published = {p: c for p, c in self.published.items() if p not in pages}

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.owned)))
        self.pool.release([page])
        self.owned -= Counter([page])

    @precondition(lambda self: self.owned.keys() - self.published.keys())
    @rule(data=st.data(), name=st.integers(0, 3))
    def publish(self, data: st.DataObject, name: int) -> None:
        page = data.draw(st.sampled_from(sorted(self.owned.keys() - self.published.keys())))
        self.pool.publish(page, content(name))
        if content(name) not in self.published.values():
            self.published[page] = content(name)

    @rule(name=st.integers(0, 3))
    def share(self, name: int) -> None:
        page = self.pool.find(content(name))
        known = {c: p for p, c in self.published.items()}
        assert page == known.get(content(name))
        if page is not None:
            self.pool.share([page])
            self.owned[page] += 1

    @invariant()
    def is_sound(self) -> None:
        assert self.pool.check() == ()
        assert self.pool.referenced == self.owned
        assert self.pool.cached == len(self.published.keys() - self.owned.keys())
        assert self.pool.available == self.pool.total - len(self.owned)


PoolMachine.TestCase.settings = histories(60, 40)
test_any_history_keeps_the_pool_sound = PoolMachine.TestCase

"""What may be shared, and what must never be."""

from dataclasses import replace
from itertools import combinations

from scheduling import ROOT, request

from weft.adapters.tenancy import TenantContext
from weft.adapters.traits import PLAIN, Traits
from weft.server.engine.messages import Generate
from weft.server.engine.pages import PagePool
from weft.server.engine.prefix_cache import PrefixCache, PrefixRoot
from weft.server.engine.sequence import Sequence

TENANT, OTHER = TenantContext("tenant"), TenantContext("other")
PROMPT = tuple(range(1, 13))  # three pages of 4


def sequence(asked: Generate, traits: Traits = PLAIN) -> Sequence:
    seq = Sequence(asked, 0, 0, list(asked.prompt))
    seq.adopt(traits)
    return seq


class Cache:
    """A prefix cache with one finished sequence in it."""

    def __init__(self, root: PrefixRoot | None = ROOT) -> None:
        self.pool = PagePool(range(1, 32))
        self.prefixes = PrefixCache(self.pool, 4, root)

    def compute(self, asked: Generate, traits: Traits = PLAIN) -> list[int]:
        """Computes a whole prompt and publishes it."""
        seq = sequence(asked, traits)
        seq.pages = self.pool.take(-(-seq.length // 4))
        seq.computed = seq.length
        self.prefixes.publish(seq)
        return seq.pages

    def find(self, asked: Generate, traits: Traits = PLAIN) -> list[int]:
        return self.prefixes.find(sequence(asked, traits))


def test_the_longest_common_prefix_in_full_pages_is_found() -> None:
    cache = Cache()
    pages = cache.compute(request("a", PROMPT))
    assert cache.find(request("b", (*PROMPT, 99))) == pages
    assert cache.find(request("c", (*PROMPT[:10], 99, 99, 99))) == pages[:2]
    assert cache.find(request("d", (99, *PROMPT))) == []


def test_at_least_one_token_is_left_to_compute() -> None:
    cache = Cache()
    pages = cache.compute(request("a", PROMPT))
    assert cache.find(request("b", PROMPT)) == pages[:2]


def test_an_equal_page_after_another_prefix_is_another_page() -> None:
    cache = Cache()
    cache.compute(request("a", PROMPT))
    assert cache.find(request("b", (7, 7, 7, 7, *PROMPT[4:], 99))) == []


def test_nothing_is_shared_between_tenants_adapters_or_with_the_base() -> None:
    cache = Cache()
    askers = [
        request("a", PROMPT, tenant="one"),
        request("b", PROMPT, tenant="two"),
        request("c", PROMPT, tenant="one", adapter="v1"),
        request("d", PROMPT, tenant="one", adapter="v2"),
    ]
    for asked in askers:
        assert cache.find(asked) == []
        cache.compute(asked)
        assert len(cache.find(asked)) == 2


def test_a_rollback_finds_its_pages_again() -> None:
    cache = Cache()
    pages = cache.compute(request("a", PROMPT, adapter="v1"))
    cache.compute(request("b", PROMPT, adapter="v2"))
    assert cache.find(request("c", PROMPT, adapter="v1")) == pages[:2]


def test_each_part_of_the_root_changes_the_key() -> None:
    roots = [
        ROOT,
        replace(ROOT, secret=b"other"),
        replace(ROOT, base_digest="other"),
        replace(ROOT, kv_dtype="bfloat16"),
    ]
    keys = [root.key(TENANT, "adapter") for root in roots]
    keys += [ROOT.key(OTHER, "adapter"), ROOT.key(TENANT, "other"), ROOT.key(TENANT, "")]
    assert len(set(keys)) == len(keys)


def test_no_two_splits_of_the_same_characters_give_the_same_key() -> None:
    for one, two in combinations(["", "a", "ab", "abc"], 2):
        first, second = (ROOT.key(TenantContext(name), "abc"[len(name) :]) for name in (one, two))
        assert first != second


def test_log_probabilities_of_the_prompt_are_computed_with_it() -> None:
    cache = Cache()
    cache.compute(request("a", PROMPT))
    seq = sequence(request("b", PROMPT, prompt_logprobs=0))
    assert cache.prefixes.find(seq) == []
    seq.tokens.append(5)
    assert len(cache.prefixes.find(seq)) == 3


def test_without_a_root_nothing_is_kept() -> None:
    cache = Cache(root=None)
    pages = cache.compute(request("a", PROMPT))
    assert not cache.prefixes.enabled
    assert cache.find(request("b", PROMPT)) == []
    cache.pool.release(pages)
    assert cache.pool.cached == 0


def test_what_is_kept_is_found_by_its_own_sequence_only_and_taken_back_once() -> None:
    pool = PagePool(range(1, 32))
    prefixes = PrefixCache(pool, 4, None)
    mine, twin = (Sequence(request("r", PROMPT), 0, arrival, list(PROMPT)) for arrival in (0, 1))
    mine.pages, mine.computed = pool.take(3), 10
    prefixes.keep(mine)
    pool.release(mine.pages)
    twin.saved = mine.saved
    assert prefixes.kept(twin, 0) == []
    assert prefixes.kept(mine, 0) == mine.pages
    pool.share(mine.pages)
    pool.withdraw(mine.pages)
    assert prefixes.kept(mine, 0) == []
    assert pool.check() == ()
    pool.release(mine.pages)
    assert pool.free == 31


def test_what_an_adapter_brings_is_shared_with_its_tenants_own_requests_only() -> None:
    cache, traits = Cache(), Traits(prefix=6)
    pages = cache.compute(request("a", PROMPT, adapter="v1"), traits)
    assert cache.find(request("b", (9, 9, 9), adapter="v1"), traits) == pages[:1]
    assert cache.find(request("c", (*PROMPT, 9), adapter="v1"), traits) == pages[:4]
    assert cache.find(request("d", PROMPT, adapter="v2"), traits) == []
    assert cache.find(request("e", PROMPT, adapter="v1", tenant="other"), traits) == []
    assert cache.find(request("f", PROMPT)) == []


def test_a_prefix_is_shared_also_where_prompts_are_not() -> None:
    cache, traits = Cache(root=None), Traits(prefix=9)
    pages = cache.compute(request("a", PROMPT, adapter="v1"), traits)
    assert cache.find(request("b", PROMPT, adapter="v1"), traits) == pages[:2]
    virtual = Traits(embeddings=9)
    cache.compute(request("c", PROMPT, adapter="v2"), virtual)
    assert cache.find(request("d", PROMPT, adapter="v2"), virtual) == []


def test_a_prompts_log_probabilities_are_computed_behind_what_the_adapter_brings() -> None:
    cache = Cache()
    for adapter, traits in (("v1", Traits(prefix=9)), ("v2", Traits(embeddings=9))):
        pages = cache.compute(request("a", PROMPT, adapter=adapter), traits)
        asked = request("b", PROMPT, adapter=adapter, prompt_logprobs=0)
        assert cache.find(asked, traits) == pages[:2]


def test_pages_before_an_invocation_are_those_of_the_base() -> None:
    cache, traits = Cache(), Traits(invocation=(9, 10))  # in the third page
    base = cache.compute(request("a", PROMPT))
    assert cache.find(request("b", (*PROMPT, 7), adapter="v1"), traits) == base[:2]
    invoked = cache.compute(request("c", PROMPT, adapter="v1"), traits)
    assert cache.find(request("d", (*PROMPT, 7), adapter="v1"), traits) == [*base[:2], invoked[2]]
    assert cache.find(request("e", (*PROMPT, 7), adapter="v2"), traits) == base[:2]
    assert cache.find(request("f", (*PROMPT, 7))) == base
    assert cache.find(request("g", (*PROMPT, 9, 10), adapter="v1"), traits) == base
    never = Traits(invocation=(77,))
    assert cache.find(request("h", (*PROMPT, 7), adapter="v3"), never) == base


def test_the_place_of_an_invocation_in_its_page_counts() -> None:
    cache = Cache()
    one, two = Traits(invocation=(9, 10)), Traits(invocation=(10, 11))
    cache.compute(request("a", PROMPT, adapter="v1"), one)
    assert len(cache.find(request("b", (*PROMPT, 7), adapter="v1"), two)) == 2

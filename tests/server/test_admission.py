"""Places: refused at once when full or draining, given back whatever happens."""

import asyncio
import gc
from contextlib import ExitStack
from pathlib import Path

import pytest
from api_server import BASE, MESSAGES, api
from fake_engine import FakeEngine
from tenants_files import key_table, tenants_file

from weft.adapters.tenancy import TenantContext
from weft.server.admission import Admission
from weft.server.errors import ApiError, ErrorCode
from weft.server.policy import Policy, Quotas, TenantPolicy
from weft.server.quotas import Account
from weft.server.tenants import DEFAULT_TENANT, Tenants


def admission_of(places: int) -> Admission:
    return Admission(places, Tenants(Policy.single(None)))


def test_places_are_given_back_after_a_failure() -> None:
    admission = admission_of(2)
    with pytest.raises(ZeroDivisionError), admission.admit(DEFAULT_TENANT, 2):
        assert 1 // (admission.inside - 2)
    assert admission.inside == 0


@pytest.mark.parametrize("held", [1, 2])
def test_what_would_exceed_the_places_is_refused(held: int) -> None:
    admission = admission_of(2)
    with admission.admit(DEFAULT_TENANT, held):
        with pytest.raises(ApiError) as caught, admission.admit(DEFAULT_TENANT, 3 - held):
            pass
        assert caught.value.error is ErrorCode.QUEUE_FULL
        assert admission.inside == held


async def test_where_nobody_ever_was_is_empty_at_once() -> None:
    async with asyncio.timeout(10):
        await admission_of(1).empty()


async def test_draining_refuses_the_new_and_waits_for_the_old() -> None:
    admission = admission_of(2)
    with admission.admit(DEFAULT_TENANT, 1):
        admission.drain()
        waiting = asyncio.create_task(admission.empty())
        await asyncio.sleep(0)
        assert not waiting.done()
        with pytest.raises(ApiError) as caught, admission.admit(DEFAULT_TENANT, 1):
            pass
        assert caught.value.error is ErrorCode.DRAINING
    await waiting


async def test_a_full_queue_is_429_with_a_whole_number_of_seconds(tmp_path: Path) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(pace=gate.wait)
    with api(tmp_path, engine, max_num_seqs=1, max_queue=1) as made:
        async with made.client() as client:
            body = {"model": BASE, "messages": MESSAGES}
            first = asyncio.create_task(client.post("/v1/chat/completions", json=body | {"n": 2}))
            await engine.until(lambda: bool(engine.requests))
            refused = await client.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            gate.set()
            assert (await first).status_code == 200
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        made.check()


async def test_a_request_that_can_never_fit_is_refused(tmp_path: Path) -> None:
    with api(tmp_path, max_num_seqs=1, max_queue=0) as made:
        async with made.client() as client:
            answer = await client.post("/v1/completions", json={"prompt": ["a", "b"]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        made.check()


async def test_a_server_is_not_ready_while_its_first_adapters_load(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        async with made.client() as client:
            assert (await client.get("/ready")).status_code == 200
            made.services.admission.starting = True
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200
            made.services.admission.starting = False
            assert (await client.get("/ready")).status_code == 200


async def test_a_draining_server_says_so(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        made.services.admission.drain()
        async with made.client() as client:
            answer = await client.post("/v1/completions", json={"prompt": "a"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200


# ---- each tenant's own quotas

ACME, BOLT = TenantContext("acme"), TenantContext("bolt")


def shared(places: int, **quotas: Quotas) -> Admission:
    """An admission for acme and bolt."""
    tenants = (TenantPolicy(ctx, quotas=quotas.get(ctx.id, Quotas())) for ctx in (ACME, BOLT))
    return Admission(places, Tenants(Policy({tenant.context.id: tenant for tenant in tenants})))


def fill(admission: Admission, tenant: TenantContext, stack: ExitStack) -> None:
    """Admits requests of one choice until one is refused."""
    while True:
        stack.enter_context(admission.admit(tenant, 1))


def admitted(admission: Admission, tenant: TenantContext, stack: ExitStack) -> int:
    """How many requests of one choice are admitted until the first is refused."""
    before = admission.inside
    with pytest.raises(ApiError, match="queue_full"):
        fill(admission, tenant, stack)
    return admission.inside - before


def test_who_asks_for_everything_leaves_the_others_their_shares() -> None:
    admission = shared(100)
    with ExitStack() as stack:
        assert admitted(admission, ACME, stack) == 100
        assert admitted(admission, BOLT, stack) == 50
    with ExitStack() as stack:
        assert admitted(admission_of(100), DEFAULT_TENANT, stack) == 100


def test_refusals_fall_on_who_holds_more_than_its_share() -> None:
    admission = shared(4)
    with ExitStack() as acme, ExitStack() as bolt:
        assert admitted(admission, ACME, acme) == 4
        assert admitted(admission, BOLT, bolt) == 2
        acme.close()
        assert admitted(admission, ACME, acme) == 2
    assert admission.inside == 0


def test_shares_are_by_weight_and_one_place_at_least() -> None:
    tenants = (TenantPolicy(TenantContext(str(weight), weight)) for weight in (0.1, 1.0, 3.0))
    policy = Policy({tenant.context.id: tenant for tenant in tenants})
    admission = Admission(8, Tenants(policy))
    with ExitStack() as stack:
        of = {w: policy.tenants[str(w)].context for w in (0.1, 1.0, 3.0)}
        assert admitted(admission, of[1.0], stack) == 8
        assert admitted(admission, of[3.0], stack) == 6
        assert admitted(admission, of[0.1], stack) == 1
        assert admission.inside <= 2 * admission.places


def test_a_request_of_more_choices_than_a_share_waits_for_free_places() -> None:
    admission = shared(4)
    with ExitStack() as stack:
        assert admitted(admission, ACME, stack) == 4
        with pytest.raises(ApiError, match="queue_full"), admission.admit(BOLT, 3):
            pass
        with admission.admit(BOLT, 2):
            assert admission.inside == 6


def test_nothing_is_remembered_of_strangers_whom_a_proxy_names() -> None:
    admission = admission_of(2)

    def remembered() -> int:
        return sum(type(found) is Account for found in gc.get_objects())

    before = remembered()
    for number in range(20):
        with admission.admit(TenantContext(f"stranger-{number}"), 1):
            pass
    assert remembered() <= before + 1


def test_a_tenants_own_line_is_bounded() -> None:
    admission = shared(100, acme=Quotas(concurrent_requests=2, queued_requests=3))
    with ExitStack() as stack:
        assert admitted(admission, ACME, stack) == 5
        with pytest.raises(ApiError) as caught, admission.admit(ACME, 3):
            pass
        assert (caught.value.error, caught.value.param) == (ErrorCode.INVALID_PARAMETER, "n")
        assert admitted(admission, BOLT, stack) > 50


async def test_charged_tokens_that_were_not_used_are_given_back() -> None:
    admission = shared(100, acme=Quotas(tokens_per_minute=100))
    with admission.admit(ACME, 1) as visit:
        async with visit.turn(100):
            with admission.admit(ACME, 1) as other, pytest.raises(ApiError, match="rate_limit"):
                async with other.turn(1):
                    pass
        visit.used = 40
    with admission.admit(ACME, 1) as visit:
        async with visit.turn(60):
            pass
        visit.used = 60
    with admission.admit(ACME, 1) as visit, pytest.raises(ApiError, match="rate_limit"):
        async with visit.turn(1):
            pass


QUOTAS = f"""
[tenants.acme.quotas]
requests_per_minute = 3
tokens_per_minute = 100
concurrent_requests = 1
kv_pages = 4
{key_table("bolt", "b2")}
"""


async def test_rates_are_kept_and_told_and_others_are_not_touched(tmp_path: Path) -> None:
    body = {"model": BASE, "prompt": [7] * 10, "max_tokens": 30}
    with api(tmp_path, tenants=tenants_file(tmp_path, QUOTAS, acme="a")) as made:
        async with made.client(authorization="Bearer a") as client:
            impossible = await client.post("/v1/completions", json=body | {"n": 4})
            assert impossible.json()["error"]["param"] == "n"
            whole = await client.post("/v1/completions", json=body | {"max_tokens": 60})
            assert whole.status_code == 400
            assert whole.json()["error"]["code"] == "context_length_exceeded"
            used = (await client.post("/v1/completions", json=body)).json()["usage"]
            assert used["total_tokens"] < 40
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 200
            refused = await client.post("/v1/completions", json=body)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        async with made.client(authorization="Bearer b2") as client:
            for _ in range(5):
                assert (await client.post("/v1/completions", json=body)).status_code == 200
        made.check()


async def test_an_answer_of_no_given_length_is_as_long_as_the_quota_allows(tmp_path: Path) -> None:
    quotas = "[tenants.acme.quotas]\ntokens_per_minute = 100\n"
    with api(tmp_path, tenants=tenants_file(tmp_path, quotas, acme="a")) as made:
        async with made.client(authorization="Bearer a") as client:
            answer = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "n": 2})
            assert answer.status_code == 200
        (request,) = made.engine.requests
        assert len(request.prompt) + 2 * request.sampling.max_tokens in (99, 100)


async def test_beyond_its_turns_a_tenant_waits_and_others_do_not(tmp_path: Path) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(pace=gate.wait)
    path = tenants_file(tmp_path, QUOTAS, acme="a")
    with api(tmp_path, engine, tenants=path) as made:
        body = {"model": BASE, "prompt": [7] * 2, "max_tokens": 2}
        async with (
            made.client(authorization="Bearer a") as acme,
            made.client(authorization="Bearer b2") as bolt,
        ):
            mine = [asyncio.create_task(acme.post("/v1/completions", json=body)) for _ in range(2)]
            await engine.until(lambda: len(engine.requests) == 1)
            theirs = asyncio.create_task(bolt.post("/v1/completions", json=body))
            await engine.until(lambda: len(engine.requests) == 2)
            assert [request.tenant.id for request in engine.requests] == ["acme", "bolt"]
            assert made.services.admission.inside == 3
            gate.set()
            answers = await asyncio.gather(*mine, theirs)
        assert [answer.status_code for answer in answers] == [200] * 3
        made.check()


async def test_an_evaluation_waits_for_the_tenants_tokens() -> None:
    clock = [0.0]
    waits: list[float] = []
    tenants = Tenants(Policy({"acme": TenantPolicy(ACME, quotas=Quotas(tokens_per_minute=60))}))
    admission = Admission(4, tenants, lambda: clock[0])

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep)
        for tokens in (50, 30, 1000):
            await admission.pay(ACME, tokens)
    assert waits == [20, 60]

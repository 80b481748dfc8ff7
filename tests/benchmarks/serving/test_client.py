"""The client against a server whose answers are scripted, in virtual time: every time is exact."""

from typing import Any

import pytest
from scripted_server import Script, ScriptedServer, scripted_server, tokens
from serving.client import (
    ByLoraField,
    ByModel,
    Dialect,
    Outcomes,
    PlainOpenAI,
    Request,
    Target,
    drive,
)
from virtual_time import run_in_virtual_time

BASE = ByModel("base")
THREE = tokens(0.5, 0.25, 0.25)


def question(at: float | None = None, adapter: str | None = None, length: int = 3) -> Request:
    return Request((1, 2, 3, 4, 5), adapter, length, at)


def ask(
    script: Any,
    requests: list[Request],
    clients: int | None = None,
    dialect: Dialect = BASE,
    timeout: float = 60.0,
) -> tuple[Outcomes, ScriptedServer]:
    async def main() -> tuple[Outcomes, ScriptedServer]:
        async with scripted_server(script) as server:
            target = Target(server.url, dialect, timeout=timeout)
            return await drive(target, requests, clients), server

    return run_in_virtual_time(main())


def test_each_token_has_its_time() -> None:
    outcomes, _ = ask(lambda _: THREE, [question(at=2.0)])
    (outcome,) = outcomes.each
    assert (outcome.due, outcome.sent, outcome.late) == (2.0, 2.0, 0.0)
    assert outcome.arrivals == (2.5, 2.75, 3.0)
    assert (outcome.first_token, outcome.gaps, outcome.whole) == (0.5, [0.25, 0.25], 1.0)
    assert (outcome.prompt_tokens, outcome.cached_tokens) == (5, 2)
    assert outcome.token_ids == (7, 7, 7)
    assert outcome.counted
    assert outcome.error is None
    assert outcomes.seconds == outcome.ended == 3.0


def test_an_open_loop_never_waits_for_answers() -> None:
    """A server that answers one after another, in 10 seconds each, gets all at their times."""
    free_at = 0.0

    def one_by_one(body: dict[str, Any]) -> Script:
        nonlocal free_at
        free_at = max(free_at, float(body["prompt"][0])) + 10.0
        return tokens(free_at - body["prompt"][0])

    requests = [Request((second,), None, 1, float(second)) for second in range(1, 6)]
    outcomes, server = ask(one_by_one, requests)
    assert [outcome.late for outcome in outcomes.each] == [0.0] * 5
    assert [outcome.first_token for outcome in outcomes.each] == [10.0, 19.0, 28.0, 37.0, 46.0]
    assert server.connections == 5


def test_requests_are_sent_by_their_times_and_told_of_in_their_order() -> None:
    requests = [question(at=3.0), question(at=1.0), question(at=2.0)]
    outcomes, _ = ask(lambda _: THREE, requests)
    assert [outcome.request for outcome in outcomes.each] == requests
    assert [outcome.sent for outcome in outcomes.each] == [3.0, 1.0, 2.0]


def test_a_closed_loop_has_as_many_requests_under_way_as_clients() -> None:
    outcomes, server = ask(lambda _: THREE, [question() for _ in range(6)], clients=2)
    assert [outcome.sent for outcome in outcomes.each] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    assert server.connections == 2


def test_tokens_that_come_together_came_at_one_time() -> None:
    outcomes, _ = ask(lambda _: tokens(0.5, 0.5, each=2), [question(at=0.0, length=4)])
    assert outcomes.each[0].arrivals == (0.5, 0.5, 1.0, 1.0)
    assert outcomes.each[0].gaps == [0.0, 0.5, 0.0]


def test_where_chunks_do_not_say_what_they_hold_the_usage_is_spread_over_them() -> None:
    def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}

    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 5}}
    parts = [(1.0, chunk("a")), (1.0, chunk("bc")), (0.0, chunk("", "length")), (0.0, usage)]
    outcomes, server = ask(lambda _: Script(parts), [question(at=0.0)], dialect=PlainOpenAI("m"))
    assert outcomes.each[0].arrivals == (1.0, 1.0, 1.0, 2.0, 2.0)
    assert not outcomes.each[0].counted
    assert not server.bodies[0].keys() & {"ignore_eos", "min_tokens", "return_token_ids", "lora"}


def test_llama_cpp_counts_tokens_in_its_timings_and_takes_adapters_by_number() -> None:
    def chunk(text: str, count: int, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "finish_reason": finish}
        return {"choices": [choice], "timings": {"predicted_n": count}}

    parts = [(1.0, chunk("a", 1)), (1.0, chunk("bc", 3)), (0.0, chunk("", 3, "length"))]
    requests = [question(adapter="legal"), question()]
    dialect = ByLoraField({"support": 0, "legal": 1})
    outcomes, server = ask(lambda _: Script(parts), requests, clients=1, dialect=dialect)
    assert outcomes.each[0].arrivals == (1.0, 2.0, 2.0)
    assert outcomes.each[0].counted
    assert [body["lora"] for body in server.bodies] == [
        [{"id": 1, "scale": 1.0}],
        [{"id": 0, "scale": 0.0}],
    ]


def test_the_adapter_is_the_model_and_answers_have_a_fixed_length() -> None:
    _, server = ask(lambda _: THREE, [question(adapter="legal"), question()], clients=1)
    assert [body["model"] for body in server.bodies] == ["legal", "base"]
    for body in server.bodies:
        assert body["prompt"] == [1, 2, 3, 4, 5]
        assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (3, 3, True)
        assert (body["temperature"], body["stream"]) == (0.0, True)


REFUSED = Script([(0.0, b'{"error": {"code": "rate_limited"}}')], status=429)
PRETTY = Script([(0.0, b'{\n  "error": {\n    "type": "quota"\n  }\n}\n')], status=403)
HTML = Script([(0.0, b"<html>bad gateway</html>")], status=502)
BROKEN = Script([THREE.parts[0], (0.25, {"error": {"code": "engine_unavailable"}})])
HUNG_UP = Script(THREE.parts[:2], whole=False)
UNFINISHED = Script(THREE.parts[:2])
EMPTY = Script(tokens().parts)
NONSENSE = Script([(0.0, b"data: {nonsense\n\n")])


@pytest.mark.parametrize(
    ("script", "error", "received"),
    [
        (REFUSED, "429 rate_limited", 0),
        (PRETTY, "403 quota", 0),
        (HTML, "502", 0),
        (BROKEN, "stream engine_unavailable", 1),
        (HUNG_UP, "connection", 2),
        (UNFINISHED, "unfinished", 2),
        (EMPTY, "empty", 0),
        (NONSENSE, "connection", 0),
        (tokens(0.5, 100.0), "timeout", 1),
    ],
)
def test_failures_are_told_and_end_nothing_else(script: Script, error: str, received: int) -> None:
    def second_fails(body: dict[str, Any]) -> Script:
        return script if body["model"] == "bad" else THREE

    requests = [question(), question(adapter="bad"), question()]
    outcomes, _ = ask(second_fails, requests, clients=1)
    assert [outcome.error for outcome in outcomes.each] == [None, error, None]
    assert [len(outcome.arrivals) for outcome in outcomes.each] == [3, received, 3]


def test_nobody_listens() -> None:
    async def main() -> Outcomes:
        async with scripted_server(lambda _: THREE) as server:
            url = server.url
        return await drive(Target(url, BASE), [question()], 1)

    (outcome,) = run_in_virtual_time(main()).each
    assert outcome.error == "connection"


def test_a_connection_that_the_server_closes_between_answers_is_replaced() -> None:
    script = Script(THREE.parts, stays=False)
    outcomes, server = ask(lambda _: script, [question(), question()], clients=1)
    assert [outcome.error for outcome in outcomes.each] == [None, None]
    assert server.connections == 2


def test_an_open_loop_needs_times() -> None:
    with pytest.raises(ValueError, match="`at`"):
        ask(lambda _: THREE, [question()])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="should be http://"):
        run_in_virtual_time(drive(Target(url, BASE), [question()], 1))

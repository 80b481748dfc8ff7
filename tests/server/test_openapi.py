"""The server against its own OpenAPI document: whatever it allows is answered as it says."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from api_server import Api, api
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema_rs import validator_for
from schemathesis.core import NotSet

from weft.server.errors import ERROR_SCHEMA, ApiError, ErrorCode

NAME = "shop"
EXAMPLES = int(os.environ.get("WEFT_CASES", "6"))
"""Requests by each operation's schema."""
FUZZ = settings(
    max_examples=EXAMPLES,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
INSIDE = re.compile(rb'Traceback|File "|\.py\b|site-packages|<[a-z.]+ object')
ERROR = validator_for(ERROR_SCHEMA)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api(tmp_path_factory.mktemp("openapi")) as made:
        yield made
        made.check()


async def send(made: Api, case: Any, *, known: bool) -> httpx.Response:
    """A request as schemathesis made it up. known: but of a model that there is"""
    body = {} if isinstance(case.body, NotSet) else {"json": case.body}
    if known:
        await made.add(NAME)
        case.path_parameters.update(dict.fromkeys(case.path_parameters, NAME))
        if isinstance(case.body, dict):
            body["json"] = case.body | {"model": NAME}
    async with made.client() as client:
        return await client.request(
            case.method,
            case.formatted_path,
            params=dict(case.query or {}),
            headers=dict(case.headers or {}),
            **body,
        )


def check(answer: httpx.Response, responses: dict[str, Any], folder: Path) -> None:
    """It is an answer of the document, and says nothing of what is inside."""
    assert answer.status_code < 500, answer.text
    if answer.status_code < 400:
        assert str(answer.status_code) in responses
    else:
        assert "default" in responses
        ERROR.validate(answer.json())
        assert not INSIDE.search(answer.content), answer.text
    assert str(folder).encode() not in answer.content


def operations(made: Api) -> list[Any]:
    schema = schemathesis.openapi.from_dict(made.app.openapi())
    return [found.ok() for found in schema.get_all_operations()]


def answered(made: Api, operation: Any, runner: asyncio.Runner) -> Counter[int]:
    """Some requests of one operation, each checked; returns the kinds of their statuses."""
    seen: Counter[int] = Counter()

    @FUZZ
    @given(operation.as_strategy(), st.booleans())
    def ask(case: Any, known: bool) -> None:
        answer = runner.run(send(made, case, known=known))
        check(answer, operation.definition.raw["responses"], made.root.parent)
        seen[answer.status_code // 100] += 1

    ask()
    return seen


def test_every_operation_answers_as_it_is_described(made: Api) -> None:
    with asyncio.Runner() as runner:
        seen = {found.label: answered(made, found, runner) for found in operations(made)}
    total = sum(seen.values(), Counter[int]())
    documented = made.app.openapi()["paths"].items()
    assert set(seen) == {f"{verb.upper()} {path}" for path, verbs in documented for verb in verbs}
    print(f"{total.total()} requests to {len(seen)} operations, {total[2]} answered with 2xx")
    assert total.total() > 150
    assert total[2] > 30


def test_errors_are_those_of_the_catalogue() -> None:
    body = ApiError(ErrorCode.MODEL_NOT_FOUND, values={"model": "x"}).body("id")
    ERROR.validate(body)
    for wrong in ({"code": "oops"}, {"type": "oops"}, {"param": 1}, {"trace": ""}):
        assert not ERROR.is_valid({"error": body["error"] | wrong})

"""`weft demo`: what it prints can be used as it stands."""

import json
import shlex
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from weft_process import WeftProcess

from weft.server import demo


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeftProcess]:
    with WeftProcess("demo", state=tmp_path_factory.mktemp("state")) as process:
        yield process


def fetch(command: str) -> Any:
    """What a printed curl command would show, parsed."""
    curl, silent, url, *options = shlex.split(command)
    assert (curl, silent) == ("curl", "-s")
    values = dict(zip(options[::2], options[1::2], strict=True))
    headers = {
        name: value
        for option, header in zip(options[::2], options[1::2], strict=True)
        if option == "-H"
        for name, value in [header.split(": ")]
    }
    data = values["-d"].encode() if "-d" in values else None
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as response:
        return json.load(response)


def test_the_printed_calls_work_and_adapters_answer_in_their_own_way(process: WeftProcess) -> None:
    lines = process.print_more(until="X-Adapter-ID")
    listed, base, adapted = (fetch(line) for line in lines if line.startswith("curl"))
    assert {model["id"] for model in listed["data"]} == {demo.MODEL_NAME, *demo.adapter_folders()}
    answers = [answer["choices"][0]["message"]["content"] for answer in (base, adapted)]
    assert all(answers)
    assert answers[0] != answers[1]


def test_the_page_and_its_examples(process: WeftProcess) -> None:
    with urllib.request.urlopen(process.url) as page:
        assert page.headers["Content-Type"].startswith("text/html")
    with urllib.request.urlopen(f"{process.url}/examples") as examples:
        assert examples.read() == Path(demo.EXAMPLES).read_bytes()

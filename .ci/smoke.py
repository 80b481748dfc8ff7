"""Starts `weft demo` as a person would; asks base and adapters through the openai client."""

import signal
import subprocess
import sys
import time

from openai import OpenAI

QUESTION = {"role": "user", "content": "Where is my order 4821?"}


def main(weft: str) -> None:
    """Raises where an answer is missing, or the server does not end cleanly."""
    started = time.monotonic()
    demo = subprocess.Popen([weft, "demo", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        ask(served_url(demo), started)
    finally:
        demo.send_signal(signal.SIGINT)
        code = demo.wait(30)
    assert code == 0, f"weft demo ended with {code}"


def served_url(demo: subprocess.Popen[str]) -> str:
    """Reads what the demo prints until it says where it serves."""
    assert demo.stdout is not None
    for line in demo.stdout:
        print(line, end="", flush=True)
        if line.startswith("URL"):
            return line.split()[-1]
    raise AssertionError("weft demo ended before it served")


def ask(url: str, started: float) -> None:
    """One streamed answer of every model that is listed."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    models = [model.id for model in client.models.list()]
    print(f"served {', '.join(models)} after {time.monotonic() - started:.1f} s", flush=True)
    assert len(models) >= 5, "the base and at least four adapters"
    answers = {}
    for model in models:
        stream = client.chat.completions.create(
            model=model, messages=[QUESTION], max_tokens=60, temperature=0, stream=True
        )
        answers[model] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        print(f"{model}: {answers[model]!r}", flush=True)
    assert all(answers.values())
    assert len(set(answers.values())) == len(models), "each adapter answers in its own way"


main(sys.argv[1])

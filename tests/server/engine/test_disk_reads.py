"""Once a version is on the device, no step reads a disk."""

import shutil
from pathlib import Path

import pytest
from engines import greedy, load, run, store_of, tiny_engine, tokens_of
from peft_adapters import save_lora

from weft.server.engine.engine import Engine

IO = Path("/proc/thread-self/io")
PROMPT = tuple(range(5, 25))
STEPS = 40


def reads() -> tuple[int, int]:
    """Reading system calls of this thread, and bytes that storage gave it, mapped files' too."""
    fields = dict(line.split(": ") for line in IO.read_text().splitlines())
    return int(fields["syscr"]), int(fields["read_bytes"])


def read_by(steps: int, engine: Engine) -> tuple[int, int]:
    """What so many steps read, beside what it costs to find out."""
    (first, _), (second, _) = reads(), reads()
    calls, nbytes = reads()
    for _ in range(steps):
        engine.step()
        engine.take_events()
    more, more_bytes = reads()
    return more - calls - (second - first), more_bytes - nbytes


@pytest.mark.skipif(not IO.exists(), reason="needs Linux's accounting of reads")
def test_steps_read_nothing(tmp_path: Path) -> None:
    folder = save_lora(tmp_path / "a", "llama", r=4, target_modules=["q_proj"])
    with tiny_engine(tmp_path) as engine:
        digest = store_of(tmp_path).put(folder)
        load(engine, digest)
        for name, adapter in (("base", None), ("one", digest), ("two", digest)):
            engine.handle(greedy(name, PROMPT, 2 * STEPS, adapter))
        read_by(STEPS // 4, engine)  # the first steps import and compile
        assert engine.busy
        assert read_by(STEPS, engine) == (0, 0)
        assert engine.busy
        run(engine)


@pytest.mark.skipif(not IO.exists(), reason="needs Linux's accounting of reads")
def test_a_read_in_a_step_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    class Reader:
        def step(self) -> None:
            (tmp_path / "file").read_text()

        def take_events(self) -> None:
            pass

    calls, _ = read_by(STEPS, Reader())  # type: ignore[arg-type]
    assert calls >= STEPS


def test_answers_go_on_when_the_files_are_gone(tmp_path: Path) -> None:
    folder = save_lora(tmp_path / "a", "llama", r=4, target_modules=["q_proj"])
    with tiny_engine(tmp_path) as engine:
        digest = store_of(tmp_path).put(folder)
        load(engine, digest)
        before = tokens_of(run(engine, greedy("before", PROMPT, STEPS, digest)))
        shutil.rmtree(store_of(tmp_path).root)
        after = tokens_of(run(engine, greedy("after", PROMPT, STEPS, digest)))
    assert after["after", 0] == before["before", 0]

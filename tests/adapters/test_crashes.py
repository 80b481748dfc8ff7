"""kill -9 at file operations of registry and store: each change is there whole, or not at all."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import registry_story
from registry_story import CTX, STORY, after, open_registry
from stored_adapters import adapter

OPERATIONS = 72
"""Of files, in the whole story."""
SUPPORT = Path(registry_story.__file__).parent


def tell(state: Path, at: int) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "registry_story.py"), str(state), str(at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    registry, _ = open_registry(tmp_path_factory.mktemp("digests"))
    found = {}
    for seed in {seed for _, _, seed in STORY if seed}:
        with registry.ingest(CTX, adapter(seed)) as upload:
            found[seed] = upload.digest
    registry.close()
    return found


def test_the_story_ends_as_told(tmp_path: Path, digests: dict[int, str]) -> None:
    code, lines = tell(tmp_path, -1)
    assert code == 0
    assert lines == [*["done"] * len(STORY), f"operations {OPERATIONS}"]
    assert recovered(tmp_path) == pointing(after(len(STORY)), digests)


@pytest.mark.parametrize("at", range(0, OPERATIONS, 5))
def test_a_killed_server_has_lost_nothing(tmp_path: Path, digests: dict[int, str], at: int) -> None:
    code, lines = tell(tmp_path, at)
    assert code == -signal.SIGKILL
    done = lines.count("done")
    found = recovered(tmp_path)
    assert found in (pointing(after(done), digests), pointing(after(done + 1), digests))


def pointing(state: dict[str, int], digests: dict[int, str]) -> dict[str, str]:
    return {name: digests[seed] for name, seed in state.items()}


def recovered(state: Path) -> dict[str, str]:
    """What a new server finds: whole files, nothing else, and it can go on."""
    registry, _ = open_registry(state)
    found = {a.name: a.digest for a in registry.list(CTX)}
    assert registry.check() == ()
    for name in found:
        for version in registry.versions(CTX, name):
            assert version.failed is None
    assert not [p for p in (state / "adapters").iterdir() if p.name.startswith(".")]
    with registry.ingest(CTX, adapter(9)) as upload:
        registry.put(CTX, "next", upload, "{}")
    registry.close()
    return found

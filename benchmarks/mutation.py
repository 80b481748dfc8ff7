"""Would the tests notice? Changes the code of what keeps tenants apart, one place at a time.

    python benchmarks/mutation.py --each 20 --seed 1 [AREA or MODULE …]

Each area is a few modules, each with its own tests. Of each, `--each` changes are drawn at random
and tested one after another, in a copy of the checkout; a change is found when a test fails. What
no test noticed is printed, and is in results/mutation.json, beside other modules' latest results.
"""

import argparse
import compileall
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from machine import fingerprint, results_path, write_results
from mutants import Mutant, mutants

ROOT = Path(__file__).parent.parent
FOLDERS = ("adapters", "kernels", "server", "tests", "benchmarks")
NAME = "mutation"
OUTPUT = "tests.txt"
# Imported once, before the forks: what the tests' start would spend its time on.
PRELOADED = ("torch", "fastapi", "httpx", "hypothesis", "msgspec", "pydantic", "safetensors.torch")
QUIETLY = ("-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
PATIENCE = 5.0
"""A change that makes the tests run so many times as long is found: it hangs."""


def _adapters(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/adapters/test_{name}.py" for name in names)


def _engine(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/server/engine/test_{name}.py" for name in names)


def _server(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/server/test_{name}.py" for name in names)


_REGISTRY = _adapters("registry", "registry_restarts", "aliases", "registry_histories")
# Of each area the modules, without `.py`, and each one's own tests.
AREAS = {
    "registry": {
        "adapters/registry": _adapters("registry", "aliases", "registry_restarts"),
        "adapters/catalogue": _REGISTRY,
        "adapters/directory": _REGISTRY,
        "adapters/ledger": _REGISTRY,
        "adapters/custody": ("tests/adapters/test_custody.py", *_REGISTRY),
        "adapters/holds": _adapters("holds", "registry"),
        "adapters/retention": _adapters("retention", "aliases"),
        "adapters/aliases": _adapters("aliases"),
        "adapters/alias": _adapters("aliases", "alias"),
        "adapters/database": _adapters("database", "registry_restarts"),
        "adapters/store": _adapters("store", "registry_restarts"),
    },
    "pages": {
        "server/engine/pages": _engine("pages", "page_tables"),
        "server/engine/page_tables": _engine("page_tables", "prefix_cache", "claims"),
        "server/engine/prefix_cache": _engine("prefix_cache", "page_tables", "scheduler_adapters"),
    },
    "admission": {
        "server/admission": _server("admission"),
        "server/quotas": _server("quotas", "admission"),
        "server/access": _server("access"),
        "server/holdings": _server("holdings"),
        "server/arrivals": _server("holdings"),
    },
    "slots": {
        "adapters/pool": _adapters("pool", "residency"),
        "adapters/places": _adapters("places", "residency"),
        "server/engine/gate": _engine("gate", "scheduler_adapters"),
        "kernels/slot_table": ("tests/kernels/test_slot_table.py",),
    },
}


class Tests:
    """A module's tests in a copy of the checkout, each run in a process forked from this one."""

    def __init__(self, tests: tuple[str, ...], copy: Path) -> None:
        self._copy = copy
        self._tests = tests
        began = time.monotonic()
        if self._run(600) != 0:
            told = (copy / OUTPUT).read_text()[-4000:]
            raise SystemExit(f"{told}\nThese tests must pass without any change.")
        self._seconds = 10 + PATIENCE * (time.monotonic() - began)

    def notice(self, module: str, mutant: Mutant) -> bool:
        """Whether a test fails, or none ends, with the change."""
        path = self._copy / f"{module}.py"
        original, stat = path.read_text(), path.stat()
        path.write_text(mutant.source)
        try:
            return self._run(self._seconds) != 0
        finally:
            path.write_text(original)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def _run(self, seconds: float) -> int:
        child = os.fork()
        if not child:
            self._be_the_tests()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return -signal.SIGKILL

    def _be_the_tests(self) -> None:
        code: int = 1
        try:
            os.setsid()
            os.chdir(self._copy)
            output = os.open(OUTPUT, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.path.insert(0, str(self._copy / "src"))
            os.environ["PYTHONPATH"] = sys.path[0]
            code = pytest.main([*QUIETLY, *self._tests])
        except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)


def copied(folder: Path) -> Path:
    """The checkout's code in a folder, compiled."""
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "results", ".cache")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        compileall.compile_dir(folder / name, quiet=2)
    shutil.copytree(ROOT / "src", folder / "src", symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def tried(module: str, tests: Tests, each: int, seed: int, source: str) -> dict[str, Any]:
    """What became of a module's changes."""
    possible = mutants(source)
    drawn = Random(f"{seed}/{module}").sample(possible, min(each, len(possible)))
    missed = [mutant for mutant in drawn if not tests.notice(module, mutant)]
    print(f"{module}: {len(drawn) - len(missed)} of {len(drawn)} found", flush=True)
    for mutant in missed:
        print(f"    {mutant.line}: {mutant.before!r} → {mutant.after!r}", flush=True)
    told = [{"line": m.line, "before": m.before, "after": m.after} for m in missed]
    return {"seed": seed, "changes": len(drawn), "of": len(possible), "not_found": told}


def keep(module: str, found: dict[str, Any]) -> None:
    """Writes what became of a module, and when, beside the others; each area's share found."""
    results = results_path(NAME)
    modules = json.loads(results.read_text())["modules"] if results.exists() else {}
    machine = fingerprint()
    modules[module] = found | {key: machine[key] for key in ("date", "commit")}
    areas = {}
    for name, area in AREAS.items():
        of_area = [modules[module] for module in area if module in modules]
        changes = sum(module["changes"] for module in of_area)
        missed = sum(len(module["not_found"]) for module in of_area)
        if changes:
            share = round((changes - missed) / changes, 3)
            areas[name] = {"changes": changes, "found": changes - missed, "share": share}
    write_results(NAME, {"areas": areas, "modules": modules})


def main() -> None:
    """Runs the areas or modules that were named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(AREAS)}; a module")
    parser.add_argument("--each", type=int, default=20, help="changes of each module (20)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    wanted = set(options.names) or set(AREAS)
    tests = {module: found for area in AREAS.values() for module, found in area.items()}
    if unknown := wanted - tests.keys() - AREAS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: neither an area nor a module of one")
    chosen = [m for name, area in AREAS.items() for m in area if wanted & {name, m}]
    for module in PRELOADED:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        for module in chosen:
            source = (copy / f"{module}.py").read_text()
            found = Tests(tests[module], copy)
            keep(module, tried(module, found, options.each, options.seed, source))


if __name__ == "__main__":
    main()

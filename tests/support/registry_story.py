"""A story of changes to a registry, beside a model that says what is there after each of them.

    python registry_story.py

waits for lines `STATE SEED LENGTH AT` and tells the story in a fork of itself, which ends as by
kill -9 before disk operation AT, or after -AT/1000 seconds. It answers `CODE DONE`: the exit code,
and how many changes were told to be done.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from sqlite_disk import sqlite_on
from stored_adapters import adapter
from stored_state import State
from watched_disk import Disk, Operation, WatchedFiles

from weft.adapters.alias import arms_of, text_of
from weft.adapters.retention import Retention
from weft.adapters.tenancy import TenantContext

CTX = TenantContext("t")
NAMES, ALIASES, SEEDS = "ab", "xy", range(1, 5)
Change = tuple[Any, ...]
Snapshot = dict[str, Any]


@dataclass
class Model:
    """What is there: names by their versions' seeds, aliases by their text."""

    versions: dict[str, dict[int, int]] = field(default_factory=dict)
    current: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    aliases: dict[str, tuple[str, str]] = field(default_factory=dict)

    def snapshot(self, digests: dict[int, str]) -> Snapshot:
        """All of it in comparable form."""
        names = {
            name: (
                self.current[name],
                name in self.pinned,
                {number: digests[seed] for number, seed in versions.items()},
            )
            for name, versions in self.versions.items()
        }
        return {"names": names, "aliases": dict(self.aliases)}

    # ---- the changes: each is made here and, by the function of the same name below, for real

    def put(self, name: str, seed: int) -> None:
        if self.versions.get(name, {}).get(self.current.get(name, 0)) != seed:
            self.last[name] = self.current[name] = self.last.get(name, 0) + 1
            self.versions.setdefault(name, {})[self.last[name]] = seed

    def rollback(self, name: str, version: int) -> None:
        self.current[name] = version

    def remove(self, name: str) -> None:
        del self.versions[name], self.current[name]
        self.pinned.discard(name)

    def pin(self, name: str, pinned: bool) -> None:
        (self.pinned.add if pinned else self.pinned.discard)(name)

    def prune(self, name: str, count: int) -> None:
        for version in self.prunable(name, count):
            del self.versions[name][version]

    def lead(self, alias: str, text: str) -> None:
        before, _ = self.aliases.get(alias, ("", ""))
        if before != text:
            self.aliases[alias] = (text, before)

    def return_(self, alias: str) -> None:
        now, before = self.aliases[alias]
        self.aliases[alias] = (before, now)

    def forget(self, alias: str) -> None:
        del self.aliases[alias]

    def restart(self) -> None:
        """Nothing is different after it."""

    # ---- what may come next

    def prunable(self, name: str, count: int) -> list[int]:
        led = {text.rpartition("=")[0] for text in chain(*self.aliases.values())}
        pinned = {self.versions[n][self.current[n]] for n in self.pinned}
        return [
            version
            for version in list(self.versions[name])[:-count]
            if version != self.current[name]
            and f"{name}@{version}" not in led
            and self.versions[name][version] not in pinned
        ]

    def choices(self, random: Random) -> list[Change]:
        """One of each kind of change that can be made now, puts more often than others."""
        puts: list[Change] = [("put", random.choice(NAMES), random.choice(SEEDS)) for _ in range(3)]
        found: list[Change] = [*puts, ("restart",)]
        if self.versions:
            name = random.choice(sorted(self.versions))
            version = random.choice(sorted(self.versions[name]))
            target = random.choice([name, f"{name}@{version}"])
            text = text_of(arms_of({target: random.choice([1, 2])}))
            found += [("rollback", name, version), ("pin", name, random.random() < 0.5)]
            found += [("prune", name, 1), ("lead", random.choice(ALIASES), text)]
            free = not any(target.startswith(name) for target, _ in self.aliases.values())
            found += [("remove", name)] if free else []
        for alias, (_, before) in sorted(self.aliases.items()):
            found.append(("forget", alias))
            found += [("return_", alias)] if self.leads(before) else []
        return found

    def leads(self, text: str) -> bool:
        name, _, version = text.rpartition("=")[0].partition("@")
        return name in self.versions and (not version or int(version) in self.versions[name])


def story(seed: int, length: int) -> list[Change]:
    """So many changes, the same ones for the same seed."""
    random, model, changes = Random(seed), Model(), []
    while len(changes) < length:
        change = random.choice(model.choices(random))
        getattr(model, change[0])(*change[1:])
        changes.append(change)
    return changes


def models(changes: list[Change]) -> list[Model]:
    """What is there before the first change and after each of them."""
    found = []
    for count in range(len(changes) + 1):
        model = Model()
        for verb, *details in changes[:count]:
            getattr(model, verb)(*details)
        found.append(model)
    return found


def snapshot(state: State) -> Snapshot:
    """What a registry says is there; what failed is missing."""
    names = {
        adapter.name: (
            adapter.version,
            adapter.pinned,
            {
                version.version: version.digest
                for version in state.registry.versions(CTX, adapter.name)
                if version.failed is None
            },
        )
        for adapter in state.registry.list(CTX)
    }
    aliases = {
        alias.name: (text_of(alias.arms), text_of(alias.previous))
        for alias in state.registry.aliases.list(CTX)
    }
    return {"names": names, "aliases": aliases}


# ---- for real


def make(state: State, change: Change) -> None:
    """Makes one change."""
    verb, *details = change
    _VERBS[verb](state, *details)


def _lead(state: State, alias: str, text: str) -> None:
    target, _, weight = text.rpartition("=")
    state.registry.aliases.put(CTX, alias, {target: float(weight)})


_VERBS: dict[str, Callable[..., object]] = {
    "put": lambda state, name, seed: state.put(name, seed, CTX),
    "rollback": lambda state, name, version: state.registry.rollback(CTX, name, version),
    "remove": lambda state, name: state.registry.remove(CTX, name),
    "pin": lambda state, name, pinned: state.registry.pin(CTX, name, pinned),
    "prune": lambda state, name, count: state.registry.prune(CTX, name, Retention(count)),
    "lead": _lead,
    "return_": lambda state, alias: state.registry.aliases.rollback(CTX, alias),
    "forget": lambda state, alias: state.registry.aliases.remove(CTX, alias),
    "restart": lambda state: state.restart(),
}


def digests(root: Path) -> dict[int, str]:
    """Of the adapters that stories put, by seed."""
    state = State(root)
    found = {}
    for seed in SEEDS:
        with state.registry.ingest(CTX, adapter(seed)) as upload:
            found[seed] = upload.digest
    state.registry.close()
    return found


def tell(root: Path, changes: list[Change], disk: Disk, done: Callable[[int], None]) -> None:
    """Makes all changes on a watched disk; `done` hears the number of each one that was made."""
    with sqlite_on(disk):
        state = State(root, WatchedFiles(disk))
        for number, change in enumerate(changes):
            make(state, change)
            done(number)
        state.registry.close()


def _tell_and_die(root: Path, seed: int, length: int, at: int, told: int) -> None:
    def trouble(number: int, operation: Operation) -> None:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    disk = Disk(trouble, synced=False)
    tell(root, story(seed, length), disk, lambda number: _ignore(os.write(told, b".")))


def _ignore(_: object) -> None:
    pass


def _fork(root: Path, seed: int, length: int, at: int) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            _tell_and_die(root, seed, length, at, writer)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    if at < 0:
        time.sleep(-at / 1000)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as file:
        return os.waitstatus_to_exitcode(status), len(file.read())


def main() -> None:
    for line in sys.stdin:
        root, *numbers = line.split()
        code, done = _fork(Path(root), *map(int, numbers))
        print(code, done, flush=True)


if __name__ == "__main__":
    main()

"""A tenant's aliases: made, split, promoted, rolled back. Knows no files and no holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from weft.adapters.alias import Alias, Arm, arms_of
from weft.adapters.catalogue import Key
from weft.adapters.errors import AdapterInUse, AliasInvalid, UnknownAdapter, VersionConflict
from weft.adapters.ledger import Ledger
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import NAME

MOST_ALIASES = 1000
"""That a tenant may have."""


class Aliases:
    """Names that lead to other names of their tenant.

    An alias is never also an adapter, and leads to something at any time: its targets cannot be
    removed. It may lead to aliases, but these only to adapters. What changes something takes the
    `digest` that the alias must have now, else VersionConflict, and raises OSError where the disk
    fails, and has then changed nothing. Thread-safe.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._directory = ledger.directory

    # ---- looking

    def get(self, ctx: TenantContext, name: str) -> Alias:
        """One alias; raises UnknownAdapter."""
        return _known(name, self.find(ctx, name))

    def find(self, ctx: TenantContext, name: str) -> Alias | None:
        """One alias; None where a name is none."""
        return self._find((ctx.id, name))

    def list(self, ctx: TenantContext) -> tuple[Alias, ...]:
        """All of a tenant's aliases, by name."""
        with self._ledger.lock:
            return tuple(self._directory.aliases.of(ctx))

    def pointing(self, ctx: TenantContext, name: str) -> tuple[tuple[Alias, Arm], ...]:
        """The aliases that lead straight to a name, and how."""
        with self._ledger.lock:
            return tuple(self._directory.pointing((ctx.id, name)))

    # ---- changing

    def put(
        self,
        ctx: TenantContext,
        name: str,
        targets: Mapping[str, float],
        expected: str | None = None,
    ) -> Alias:
        """Lets a name lead to targets, `name` or `name@version`, by their weights.

        Raises AliasInvalid for what cannot be.
        """
        if not NAME.fullmatch(name):
            raise AliasInvalid(f"{name!r} cannot be a name")
        arms = arms_of(targets)
        return self._change((ctx.id, name), lambda current: arms, expected)

    def promote(
        self, ctx: TenantContext, name: str, target: str, expected: str | None = None
    ) -> Alias:
        """Lets one of an alias's targets take all; raises UnknownAdapter, AliasInvalid."""

        def alone(current: Alias | None) -> tuple[Arm, ...]:
            arms = _known(name, current).arms
            chosen = tuple(replace(arm, weight=100.0) for arm in arms if arm.target == target)
            if not chosen:
                others = ", ".join(arm.target for arm in arms)
                raise AliasInvalid(f"{target!r} is none of {others}")
            return chosen

        return self._change((ctx.id, name), alone, expected)

    def rollback(self, ctx: TenantContext, name: str, expected: str | None = None) -> Alias:
        """Lets an alias lead where it led before its last change.

        Raises UnknownAdapter, AliasInvalid where it was never changed or what it led to has gone.
        """

        def before(current: Alias | None) -> tuple[Arm, ...]:
            arms = _known(name, current).previous
            if not arms:
                raise AliasInvalid("it has led nowhere else yet")
            return arms

        return self._change((ctx.id, name), before, expected)

    def remove(self, ctx: TenantContext, name: str, expected: str | None = None) -> None:
        """Forgets an alias; raises UnknownAdapter, AdapterInUse where another one leads to it."""
        key = (ctx.id, name)
        with self._ledger.changing(aliases=[key]) as change:
            _expect(name, _known(name, self._find(key)), expected)
            for alias, _ in self.pointing(ctx, name):
                raise AdapterInUse(name, alias.name)
            change.rows.remove_alias(key)

    # ---- steps of them

    def _find(self, key: Key) -> Alias | None:
        with self._ledger.lock:
            return self._directory.aliases.get(key)

    def _change(
        self, key: Key, choose: Callable[[Alias | None], tuple[Arm, ...]], expected: str | None
    ) -> Alias:
        """Lets an alias lead where `choose` says, given how it is now."""
        with self._ledger.changing(aliases=[key]) as change:
            current = self._find(key)
            if current is not None:
                _expect(key[1], current, expected)
            arms = choose(current)
            _expect(key[1], current, expected)
            with self._ledger.lock:
                self._check(key, arms)
            if current is None or current.arms != arms:
                change.rows.lead(key, arms, current.arms if current else ())
        return _known(key[1], change.aliases[key])

    def _check(self, key: Key, arms: Sequence[Arm]) -> None:
        """Raises AliasInvalid where an alias cannot lead so."""
        directory, (tenant, name) = self._directory, key
        if key in directory.names:
            raise AliasInvalid(f"{name!r} is an adapter")
        if key not in directory.aliases and directory.aliases.beside(key) >= MOST_ALIASES:
            raise AliasInvalid(f"there are {MOST_ALIASES} aliases already, and no more are allowed")
        for arm in arms:
            inner = directory.aliases.get((tenant, arm.name))
            if inner is None or arm.version is not None:
                if directory.version((tenant, arm.name), arm.version) is None:
                    raise AliasInvalid(f"there is no adapter {arm.target!r}")
            elif arm.name == name or self._is_deep(key, inner):
                raise AliasInvalid(f"{arm.name!r} leads to aliases itself")
            elif (outer := next(directory.pointing(key), None)) is not None:
                raise AliasInvalid(f"{outer[0].name!r} leads to it, so it leads to adapters only")

    def _is_deep(self, key: Key, alias: Alias) -> bool:
        """Whether an alias of the key's tenant leads to another one."""
        tenant, _ = key
        aliases = self._directory.aliases
        return any(arm.version is None and (tenant, arm.name) in aliases for arm in alias.arms)


def _known(name: str, alias: Alias | None) -> Alias:
    if alias is None:
        raise UnknownAdapter(name)
    return alias


def _expect(name: str, alias: Alias | None, expected: str | None) -> None:
    found = alias.digest if alias else None
    if expected is not None and found != expected:
        raise VersionConflict(name, found)

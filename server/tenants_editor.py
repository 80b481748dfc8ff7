"""Changes of a tenants file, as a careful person would make them: all else in it stays as it is.

Each change is read back whole before it takes the file's place, so that a server that watches the
file never sees half of one, nor one that it would refuse.
"""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT

from weft.server.policy import key_id
from weft.server.tenants_file import RoleName, TenantsInvalid, parse_tenants

KEY_BYTES = 32
_PRIVATE = 0o600


class TenantsEditor:
    """One file, changed by one process at a time. Every change raises TenantsInvalid or OSError."""

    def __init__(self, path: Path) -> None:
        """path: need not exist, its folder does"""
        self._path = path
        self._target = path.resolve()

    def add_key(self, tenant: str, role: RoleName, now: datetime) -> str:
        """Makes a key for a tenant, and the tenant if there is none; returns the key.

        Nothing but its hash is kept.
        """
        key = _new_key()
        with self._document() as document:
            _add(document, tenant, key, role, now)
        return key

    def rotate(self, tenant: str, role: RoleName | None, now: datetime, grace: timedelta) -> str:
        """Makes a key in the place of a tenant's others of its role; these go on for `grace`.

        role: may be left out where the tenant's keys have one role   Keys that have expired leave.
        """
        now = now.replace(microsecond=0)
        key, end = _new_key(), now + grace
        with self._document() as document:
            keys = _keys_of(document, tenant)
            role = role or _only_role(tenant, keys)
            for index in reversed(range(len(keys))):
                old = keys[index]
                if old.get("role", "use") == role:
                    old["expires"] = min(old.get("expires", end), end)
                if "expires" in old and old["expires"] <= now:
                    del keys[index]
            _add(document, tenant, key, role, now)
        return key

    def remove(self, tenant: str, key: str | None = None) -> None:
        """Removes a tenant with all that the file says of it, or one of its keys, by its id."""
        with self._document() as document:
            keys = _keys_of(document, tenant)
            if key is None:
                del document["tenants"][tenant]
                return
            found = [i for i, k in enumerate(keys) if key_id(bytes.fromhex(k["sha256"])) == key]
            if not found:
                raise TenantsInvalid([f"{tenant} has no key {key}"])
            del keys[found[0]]

    @contextmanager
    def _document(self) -> Iterator[Any]:
        """The file's content, which is written back at the end."""
        folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            document = self._read()
            yield document
            data = tomlkit.dumps(document).encode()
            parse_tenants(data, str(self._path))
            self._write(data)
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self) -> Any:
        try:
            data = self._target.read_bytes()
        except FileNotFoundError:
            return tomlkit.document()
        if data.strip():
            parse_tenants(data, str(self._path))
        try:
            return tomlkit.parse(data)
        except TOMLKitError as error:
            raise TenantsInvalid([f"{self._path}: {error}"]) from None

    def _write(self, data: bytes) -> None:
        """Puts a new file in the place of the old one, with its mode and, if allowed, its owner."""
        with tempfile.NamedTemporaryFile(dir=self._target.parent, delete=False) as file:
            new = Path(file.name)
            try:
                file.write(data)
                file.flush()
                self._keep_access(file.fileno())
                os.fsync(file.fileno())
                new.replace(self._target)
            except BaseException:
                new.unlink()
                raise

    def _keep_access(self, descriptor: int) -> None:
        if not self._target.exists():
            os.fchmod(descriptor, _PRIVATE)
            return
        old = self._target.stat()
        if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, old.st_uid, old.st_gid)
        os.fchmod(descriptor, old.st_mode & 0o7777)


def _new_key() -> str:
    return f"weft-{secrets.token_urlsafe(KEY_BYTES)}"


def _add(document: Any, tenant: str, key: str, role: RoleName, now: datetime) -> None:
    tenants = document.setdefault("tenants", tomlkit.table(is_super_table=True))
    table = tenants.setdefault(tenant, tomlkit.table())
    keys = table.setdefault("keys", tomlkit.aot())
    entry = tomlkit.table() if isinstance(keys, AoT) else tomlkit.inline_table()
    entry["sha256"] = sha256(key.encode()).hexdigest()
    entry["role"] = role
    entry["created"] = now.replace(microsecond=0)
    if isinstance(keys, AoT):
        entry.add(tomlkit.nl())
    keys.append(entry)


def _keys_of(document: Any, tenant: str) -> Any:
    table = document.get("tenants", {}).get(tenant)
    if table is None:
        raise TenantsInvalid([f"there is no tenant {tenant!r}"])
    return table.get("keys", [])


def _only_role(tenant: str, keys: Any) -> RoleName:
    roles = {key.get("role", "use") for key in keys}
    if len(roles) != 1:
        found = ", ".join(sorted(roles)) or "none"
        raise TenantsInvalid([f"{tenant} has keys of these roles: {found}; say which one"])
    role: RoleName = roles.pop()
    return role

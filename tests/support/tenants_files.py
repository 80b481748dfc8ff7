"""Tenants files as tests need them: a tenant for each name, each with one key."""

from hashlib import sha256
from pathlib import Path


def hashed(key: str) -> str:
    """What a tenants file holds of a key."""
    return sha256(key.encode()).hexdigest()


def key_table(tenant: str, key: str, role: str = "manage") -> str:
    """The TOML of one key."""
    return f'[[tenants.{tenant}.keys]]\nsha256 = "{hashed(key)}"\nrole = "{role}"\n'


def tenants_file(folder: Path, more: str = "", **keys: str) -> Path:
    """A file in which each tenant (by its keyword) has one key that may manage; `more` is TOML."""
    path = folder / "tenants.toml"
    path.write_text(more + "".join(key_table(tenant, key) for tenant, key in keys.items()))
    return path

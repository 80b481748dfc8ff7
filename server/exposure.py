"""Who can reach a server of these settings, and whether that can be meant."""

import ipaddress

from weft.server.settings import Settings, SettingsError
from weft.server.tenants import Tenants
from weft.server.tenants_file import TenantsInvalid


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError for settings and tenants that cannot be used, one line a fault."""
    lines = []
    if settings.tenants is not None and settings.api_key is not None:
        lines.append("--api-key: has no meaning beside --tenants, whose file holds the keys")
    if settings.trust_proxy_header is not None and is_open_to_all(settings):
        lines.append(
            "--trust-proxy-header: whoever reaches this server could name any tenant; the proxy "
            "needs a key (--api-key, or an admin's in the file of --tenants), or --host 127.0.0.1"
        )
    try:
        Tenants.of(settings)
    except TenantsInvalid as error:
        lines += [f"--tenants: {line}" for line in error.lines]
    if lines:
        raise SettingsError(lines)


def is_open_to_all(settings: Settings) -> bool:
    """Whether others than this machine's own users get in without a key."""
    has_key = settings.tenants is not None or settings.api_key is not None
    return not has_key and not _is_loopback(settings.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

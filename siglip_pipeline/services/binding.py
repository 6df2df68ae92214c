"""Addresses that a service may bind."""

import ipaddress

from siglip_pipeline.errors import LaunchError
from siglip_pipeline.settings import Settings


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to ``host``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings) -> None:
    """Refuse an address that other machines can reach unless a key is set.

    Raises:
        LaunchError: with the remedy.
    """
    if settings.api_key is not None:
        return
    for what, host, remedy in (
        ("search service", settings.host, "--host, SIGLIP_HOST"),
        ("Dagster UI", settings.dagster_host, "SIGLIP_DAGSTER_HOST"),
    ):
        if not is_loopback(host):
            raise LaunchError(
                f"the {what} would be open to everyone who reaches {host}: set SIGLIP_API_KEY to a "
                f"secret of at least 16 characters, or bind to 127.0.0.1 ({remedy})"
            )

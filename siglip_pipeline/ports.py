"""Ports of this machine, and whether something answers there."""

import contextlib
import socket
import urllib.error
import urllib.request

from siglip_pipeline.errors import LaunchError


def free_port(preferred: int | None = None, *, host: str = "127.0.0.1") -> int:
    """``preferred`` when nothing listens there, else a port that the system picks."""
    if preferred is not None:
        with contextlib.suppress(LaunchError):
            check_port(host, preferred)
            return preferred
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, *, option: str = "--port or SIGLIP_DAGSTER_PORT") -> None:
    """See that a service can listen there.

    Raises:
        LaunchError: it cannot, with the option that chooses another port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another with "
                f"{option}"
            ) from error


def listens(port: int) -> bool:
    """Whether a process of this machine listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether an HTTP service answers there, and is well."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False

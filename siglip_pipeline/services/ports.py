"""Find ports and sockets of this machine, and test whether a service answers."""

import contextlib
import errno
import functools
import os
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Final

from siglip_pipeline.errors import LaunchError
from siglip_pipeline.text.secret import Secret

SOCKET_PREFIX: Final = "siglip-up-"
_LONGEST_PARENT: Final = 70
_BACKLOG: Final = 512
_HOST_OPTIONS: Final = "SIGLIP_HOST or SIGLIP_DAGSTER_HOST"


def free_port(preferred: int | None = None, *, host: str = "127.0.0.1") -> int:
    """Return ``preferred`` if nothing listens there, else a port that the system picks."""
    if preferred is not None:
        with contextlib.suppress(LaunchError):
            check_port(host, preferred, option=_HOST_OPTIONS)
            return preferred
    with listen(host, 0, option=_HOST_OPTIONS) as probe:
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, *, option: str) -> None:
    """Check that a service can listen there.

    Raises:
        LaunchError: it cannot, with the option that chooses another port.
    """
    listen(host, port, option=option).close()


def listen(host: str, port: int, *, option: str) -> socket.socket:
    """Return a socket that listens on an IPv4 or IPv6 address.

    Args:
        host: an address, with or without brackets, or ``localhost``.
        port: 0 for one that the system picks.
        option: names the setting of another port in messages.

    Raises:
        LaunchError: the address cannot be used, with the option that chooses another port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise LaunchError(
            f"port {port} on {host} cannot be used ({error.strerror}); choose another with {option}"
        ) from error
    return listener


@contextmanager
def socket_folder() -> Iterator[Path]:
    """Make a folder for Unix sockets that no other user can enter; remove it on leaving.

    A socket's path may be 107 bytes long at most (``sun_path`` in unix(7)), so it cannot lie in an
    arbitrary folder of the user.
    """
    with tempfile.TemporaryDirectory(prefix=SOCKET_PREFIX, dir=parent_of_sockets()) as folder:
        yield Path(folder)


def parent_of_sockets() -> str:
    """Return the temporary folder, or ``/tmp`` if its path is too long for sockets below it."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) <= _LONGEST_PARENT else "/tmp"


def listens(address: int | Path) -> bool:
    """Return whether a process of this machine listens on a port, or on a Unix socket."""
    if isinstance(address, int):
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", address)) == 0
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        # Other errors come from a socket in use, e.g. another user's.
        return probe.connect_ex(str(address)) not in (errno.ENOENT, errno.ECONNREFUSED)


def answers(url: str, *, api_key: Secret | None = None) -> bool:
    """Return whether a service of ours answers there with 200."""
    try:
        ask(url, api_key=api_key, seconds=2)
    except OSError:
        return False
    return True


def ask(url: str, *, api_key: Secret | None = None, seconds: float) -> bytes:
    """Return what our own service answers at an address of this machine.

    No proxy of the environment is asked for it: a proxy's 127.0.0.1 is another machine.

    Args:
        url: the whole address.
        api_key: SIGLIP_API_KEY, if the service asks for one.
        seconds: the longest wait for the connection, and for each piece of the answer.

    Raises:
        OSError: nothing answers, not in HTTP, or with another status than 200 to 299.
    """
    request = urllib.request.Request(url, headers=key_headers(api_key))
    try:
        with _direct().open(request, timeout=seconds) as answer:
            return bytes(answer.read())
    except HTTPException as error:
        raise ConnectionError(f"{url} does not answer in HTTP: {error!r}") from error


@functools.cache
def _direct() -> urllib.request.OpenerDirector:
    """Return an opener without proxies: since Python 3.12 making one reads all certificates."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def key_headers(api_key: Secret | None) -> dict[str, str]:
    """Return the headers that authenticate a request to our own services."""
    return {} if api_key is None else {"X-API-Key": api_key.reveal()}

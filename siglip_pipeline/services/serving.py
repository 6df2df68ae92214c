"""The state file of a running search service, so that commands of the same home can ask it."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from siglip_pipeline.errors import EmbeddedDatabaseError
from siglip_pipeline.files.private_files import private_home
from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.services.state import started
from siglip_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_EMBEDDED: Final = "embedded"


@contextmanager
def announced_service(settings: Settings, url: str) -> Iterator[None]:
    """Name the service at ``url`` in its home's state file while this block runs.

    Two services of one home overwrite each other's entry; the later one is asked.
    """
    path = _state_path(settings.home)
    state = {
        "pid": os.getpid(),
        "created": started(psutil.Process()),
        "url": url,
        "database": _served_database(settings),
    }
    try:
        private_home(settings.home)
        with replacing(path) as file:
            file.write(json.dumps(state).encode())
    except OSError as error:  # a home that can only be read: commands do the work themselves
        logger.info("commands will not find this service: %s cannot be written (%s)", path, error)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text()) == state:
                path.unlink()


def find_service(settings: Settings) -> str | None:
    """Return the address of a running service over the database of these settings, or None."""
    try:
        state = json.loads(_state_path(settings.home).read_text())
        if state["database"] != _named_database(settings):
            return None
        process = psutil.Process(int(state["pid"]))
        return str(state["url"]) if started(process) == float(state["created"]) else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def _named_database(settings: Settings) -> str:
    """Return the database that the settings name, without a password."""
    return _EMBEDDED if settings.database_url is None else str(settings.database_url)


def _served_database(settings: Settings) -> str:
    """Return the same name where `up` passes the embedded server's address to its services."""
    # Commands that only ask a service do without the database's driver.
    from siglip_pipeline.store.database import DatabaseOptions, embedded_server

    if settings.database_url is not None:
        server = embedded_server(DatabaseOptions.from_settings(settings))
        with contextlib.suppress(EmbeddedDatabaseError, OSError):
            if settings.database_url.reveal() == server.url():
                return _EMBEDDED
    return _named_database(settings)


def _state_path(home: Path) -> Path:
    return home / "serve.json"

"""Names that the shell completes: of videos, watches and models of a database that answers at once.

Every command imports this module, so it imports the store only when a name is completed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from siglip_pipeline.errors import SiglipPipelineError
from siglip_pipeline.settings import Settings

if TYPE_CHECKING:
    from siglip_pipeline.store.database import Database

_MOST = 200


def complete_video(incomplete: str) -> list[str]:
    """Return paths of videos that begin so; none if the database does not run."""
    from siglip_pipeline.store.videos import VideoStore

    return _beginning(incomplete, lambda database: sorted(VideoStore(database).paths()))


def complete_moment(incomplete: str) -> list[str]:
    """Return paths of videos that begin so, up to the second of ``VIDEO@SECONDS``."""
    return [f"{video}@" for video in complete_video(incomplete)]


def complete_watch(incomplete: str) -> list[str]:
    """Return names of standing queries that begin so; none if the database does not run."""
    from siglip_pipeline.store.watches import WatchStore

    return _beginning(incomplete, lambda database: [w.name for w in WatchStore(database).all()])


def complete_model(incomplete: str) -> list[str]:
    """Return keys of models that begin so; none if the database does not run."""
    from siglip_pipeline.store.models import ModelStore

    return _beginning(incomplete, lambda database: [m.key for m in ModelStore(database).list()])


def _beginning(incomplete: str, names: Callable[["Database"], list[str]]) -> list[str]:
    try:
        with _running_database() as database:
            found = names(database) if database is not None else []
    except SiglipPipelineError:  # the shell shows nothing instead
        return []
    return [name for name in found if name.startswith(incomplete)][:_MOST]


@contextmanager
def _running_database() -> Iterator["Database | None"]:
    """Yield the database if it runs: a completion starts nothing."""
    from siglip_pipeline.store.database import Database, DatabaseOptions, embedded_server

    settings = Settings.load()
    url: str | None = settings.database_url.reveal() if settings.database_url else None
    if url is None:
        server = embedded_server(DatabaseOptions.from_settings(settings))
        url = server.url() if server.is_running() else None
    if url is None:
        yield None
        return
    with Database(url) as database:
        yield database

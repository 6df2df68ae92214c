"""Open Dagster's instance; say plainly why its storage cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from siglip_pipeline.errors import DatabaseUnavailableError, SettingsError
from siglip_pipeline.settings import Settings
from siglip_pipeline.text.in_words import in_one_line
from siglip_pipeline.text.secret import IN_A_PASSWORD, SecretUrl

if TYPE_CHECKING:
    from dagster import DagsterInstance


@contextmanager
def open_instance(settings: Settings) -> Iterator["DagsterInstance"]:
    """Open the instance of ``DAGSTER_HOME``.

    A server that may be starting is waited for; one that refuses is not.

    Raises:
        SettingsError: ``dagster_postgres_url`` cannot be read.
        DatabaseUnavailableError: there is no connection to Dagster's storage.
    """
    # Dagster takes a second to import, and most commands do not need it.
    import sqlalchemy.exc
    from dagster import DagsterInstance

    from siglip_pipeline.services.storage_errors import STORAGE_ERRORS

    url = settings.dagster_postgres_url or SecretUrl("")
    try:
        sqlalchemy.make_url(url.reveal() or "postgresql://")
    except (ValueError, sqlalchemy.exc.ArgumentError):
        # Raised without a cause: the library's message repeats parts of the URL.
        raise SettingsError(
            "DAGSTER_POSTGRES_URL cannot be read as postgresql+psycopg2://user:password@host:port/"
            f"database; {IN_A_PASSWORD}"
        ) from None
    try:
        instance = DagsterInstance.get()
    except STORAGE_ERRORS as error:
        said = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
        raise DatabaseUnavailableError(
            "no connection to Dagster's storage (DAGSTER_POSTGRES_URL): "
            f"{in_one_line(url.masked(said))}"
        ) from url.masked_error(error)
    with instance:
        yield instance

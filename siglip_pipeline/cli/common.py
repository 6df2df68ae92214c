"""What all commands share: the option `--json`, the settings, and a log on stderr."""

import logging
import sys
import traceback
from typing import Annotated, Any

import typer

from siglip_pipeline.settings import Settings, drop_libpq_variables, misspelt_variables
from siglip_pipeline.uploads.names import shown

logger = logging.getLogger(__name__)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


class OneLine(logging.Formatter):
    """Formats a message as one line, even if a name in it has line breaks; tracebacks keep theirs.

    Secrets of the settings are masked, also in messages of libraries.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._settings = settings

    def format(self, record: logging.LogRecord) -> str:
        """Return the record with its traceback."""
        return self._settings.masked(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        record.message = shown(record.message.rstrip("\n"))  # Celery ends some with a line break
        return super().formatMessage(record)


def load_settings(**overrides: Any) -> Settings:
    """Load the settings and set up logging; ``overrides`` win over the environment.

    A variable that is nearly one of a setting is named by a warning.

    Raises:
        SettingsError: naming every variable whose value cannot be used.
    """
    settings = Settings.load(**{k: v for k, v in overrides.items() if v is not None})
    if settings.database_url is None:
        drop_libpq_variables()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(settings))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    for noisy in ("httpx", "alembic", "urllib3", "dagster"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for sentence in misspelt_variables():
        logger.warning(sentence)
    sys.excepthook = lambda *raised: _tell(settings, raised[1])
    return settings


def _tell(settings: Settings, error: BaseException) -> None:
    """Print an uncaught error without secrets."""
    sys.stderr.write(settings.masked("".join(traceback.format_exception(error))))

"""What every command begins with: the option `--json`, the settings, and a log on stderr."""

import logging
import sys
import traceback
from typing import Annotated, Any

import typer

from siglip_pipeline.settings import Settings
from siglip_pipeline.uploads.names import shown

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


class OneLine(logging.Formatter):
    """A message is one line, whatever the names in it hold; tracebacks keep theirs.

    Whatever a library says of an address, no secret of the settings is in it.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._settings = settings

    def format(self, record: logging.LogRecord) -> str:
        """The record with its traceback."""
        return self._settings.masked(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        record.message = shown(record.message)
        return super().formatMessage(record)


def load_settings(**overrides: Any) -> Settings:
    """The environment's settings; options that were given win over it. Sets logging up.

    Raises:
        SettingsError: naming every variable whose value cannot be used.
    """
    settings = Settings.load(**{k: v for k, v in overrides.items() if v is not None})
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(settings))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    for noisy in ("httpx", "alembic", "urllib3", "dagster"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.excepthook = lambda *raised: _tell(settings, raised[1])
    return settings


def _tell(settings: Settings, error: BaseException) -> None:
    """What Python says of an error that nobody took, without secrets."""
    sys.stderr.write(settings.masked("".join(traceback.format_exception(error))))

"""What every command begins with: the option `--json`, the settings, and a log on stderr."""

import logging
import sys
from typing import Annotated, Any

import typer

from siglip_pipeline.names import shown
from siglip_pipeline.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


class OneLine(logging.Formatter):
    """A message is one line, whatever the names in it hold; tracebacks keep theirs."""

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
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    for noisy in ("httpx", "alembic", "urllib3", "dagster"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return settings

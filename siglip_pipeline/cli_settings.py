"""What every command begins with: the option `--json`, the settings, and a log on stderr."""

import logging
import sys
from typing import Annotated, Any

import typer

from siglip_pipeline.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def load_settings(**overrides: Any) -> Settings:
    """The environment's settings; options that were given win over it. Sets logging up.

    Raises:
        SettingsError: naming every variable whose value cannot be used.
    """
    settings = Settings.load(**{k: v for k, v in overrides.items() if v is not None})
    logging.basicConfig(
        level=settings.log_level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("httpx", "alembic", "urllib3", "dagster"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return settings

"""Keep Dagster's sensors running after the clock was set back.

The daemon evaluates a sensor when an interval has passed since the last evaluation, and keeps that
time in its database and in memory. If that time is weeks ahead, no sensor would run for weeks.
"""

import time
from pathlib import Path
from typing import Final

from siglip_pipeline.errors import DatabaseUnavailableError
from siglip_pipeline.services.instance import open_instance
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline.text.in_words import in_one_line
from siglip_pipeline.text.secret import SecretUrl

_SLACK_SECONDS: Final = 5.0
"""Corrections up to this size, such as those of NTP, are ignored."""


class ClockWatch:
    """Compares the wall clock with the monotonic clock."""

    def __init__(self) -> None:
        self._highest = self._look()

    def set_back_seconds(self) -> float:
        """Return how far the clock was set back since :meth:`heeded`; 0.0 if it was not."""
        now = self._look()
        self._highest = max(self._highest, now)
        back = self._highest - now
        return back if back > _SLACK_SECONDS else 0.0

    def heeded(self) -> None:
        """Take the present clock as correct."""
        self._highest = self._look()

    @staticmethod
    def _look() -> float:
        return time.time() - time.monotonic()


def reset_future_times(settings: Settings, dagster_home: Path) -> int:
    """Replace the future times that Dagster has stored by the present; its daemon must not run.

    Returns:
        How many sensors and schedules had such times.

    Raises:
        DatabaseUnavailableError: Dagster's storage does not answer.
    """
    # Dagster takes a second to import, and most commands do not need it.
    from siglip_pipeline.defs.internals import reset_instigator_times
    from siglip_pipeline.services.storage_errors import STORAGE_ERRORS

    try:
        with (
            process_environment(settings, DAGSTER_HOME=str(dagster_home)),
            open_instance(settings) as instance,
        ):
            now = time.time()
            return sum(
                reset_instigator_times(instance, state, now)
                for state in instance.all_instigator_state()
            )
    except STORAGE_ERRORS as error:
        url = settings.dagster_postgres_url or SecretUrl("")
        said = in_one_line(url.masked(error))
        raise DatabaseUnavailableError(
            f"Dagster's storage does not answer: {said}; bring its Postgres back"
        ) from url.masked_error(error)

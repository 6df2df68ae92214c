"""The executor of steps: the run's own process, or Celery workers. Makes no connection."""

import dagster as dg

from siglip_pipeline.defs.queues import INSTALL, backend_url, broker_url, celery_config
from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import Settings


def executor_for(settings: Settings) -> dg.ExecutorDefinition:
    """Return the executor that ``SIGLIP_EXECUTOR`` names.

    Raises:
        SettingsError: it names Celery, but no broker is set or dagster-celery is not installed.
    """
    if settings.executor == "in_process":
        # One process per run: the model is loaded once for all partitions of the run.
        return dg.in_process_executor
    try:
        from dagster_celery import celery_executor
    except ImportError as error:
        raise SettingsError(
            f"SIGLIP_EXECUTOR=celery needs dagster-celery, which is not installed: {INSTALL}"
        ) from error
    configured: dg.ExecutorDefinition = celery_executor.configured(
        {
            "broker": broker_url(settings).reveal(),
            "backend": backend_url(settings).reveal(),
            "config_source": celery_config(settings),
        },
        name="celery",
    )
    return configured

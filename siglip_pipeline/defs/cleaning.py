"""Delete old compute and tick logs daily: Dagster never expires them."""

from pathlib import Path

import dagster as dg

from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.old_logs import remove_old_logs as remove_old_log_files
from siglip_pipeline.text.in_words import counted, size_in_words


@dg.op(description="Remove logs of steps and ticks that are older than `SIGLIP_KEEP_LOGS_DAYS`.")
def remove_logs(context: dg.OpExecutionContext) -> None:
    """Remove old log files of this Dagster; the records of runs and their events stay."""
    days = Settings.load().keep_logs_days
    if not days:
        context.log.info("SIGLIP_KEEP_LOGS_DAYS is 0: logs are kept forever")
        return
    removed = remove_old_log_files(Path(context.instance.storage_directory()), days=days)
    context.log.info(
        f"removed {counted(removed.files, 'file')}, {size_in_words(removed.size_bytes)}"
    )


@dg.job(
    name="remove_old_logs",
    # In the run's process, which sees the log files; Celery could send the step to another machine.
    executor_def=dg.in_process_executor,
    description="Remove logs of steps and ticks that are older than `SIGLIP_KEEP_LOGS_DAYS`; runs "
    "and their events stay, because they record which partitions are materialized.",
)
def remove_old_logs() -> None:
    """Run `remove_logs`."""
    remove_logs()


daily_cleaning = dg.ScheduleDefinition(
    name="daily_cleaning",
    job=remove_old_logs,
    cron_schedule="15 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 04:15 UTC: remove old logs.",
)

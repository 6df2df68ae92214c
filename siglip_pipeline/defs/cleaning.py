"""Old logs go by themselves: Dagster keeps what steps and ticks wrote for ever."""

from pathlib import Path

import dagster as dg

from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.old_logs import remove_old_logs as remove_old_log_files


@dg.op(description="Remove logs of steps and ticks that are older than `SIGLIP_KEEP_LOGS_DAYS`.")
def remove_logs(context: dg.OpExecutionContext) -> None:
    """Remove old log files of this Dagster; the records of runs and their events stay."""
    days = Settings.load().keep_logs_days
    if not days:
        context.log.info("SIGLIP_KEEP_LOGS_DAYS is 0: logs are kept for ever")
        return
    removed = remove_old_log_files(Path(context.instance.storage_directory()), days=days)
    context.log.info(f"removed {removed.files} files, {removed.size_bytes / 2**20:.1f} MiB")


@dg.job(
    name="remove_old_logs",
    # Here, where the files are, also where other steps go to other machines.
    executor_def=dg.in_process_executor,
    description="Remove logs of steps and ticks that are older than `SIGLIP_KEEP_LOGS_DAYS`; runs "
    "and their events stay, since they are what says which partition is made.",
)
def remove_old_logs() -> None:
    """The job around `remove_logs`."""
    remove_logs()


daily_cleaning = dg.ScheduleDefinition(
    name="daily_cleaning",
    job=remove_old_logs,
    cron_schedule="15 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 04:15 UTC: remove old logs.",
)

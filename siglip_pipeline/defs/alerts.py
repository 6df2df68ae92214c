"""Report failed runs: in the log of a sensor, and to a webhook."""

import dagster as dg

from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.stages.webhooks import post_json
from siglip_pipeline.text.secret import Secret

_MOST_CHARACTERS = 3000


def _failure_summary(context: dg.RunFailureSensorContext) -> str:
    """Return a few lines that name the assets, the videos and the reasons of the failure."""
    run = context.dagster_run
    assets = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ()))
    lines = [f"Run {run.run_id} of {assets or run.job_name} failed."]
    if context.partition_key is not None:
        lines.append(f"Video: {context.partition_key}")
    elif RANGE_START_TAG in run.tags:
        lines.append(f"Videos: {run.tags[RANGE_START_TAG]} to {run.tags[RANGE_END_TAG]}")
    reasons = [_reason(event) for event in context.get_step_failure_events()]
    return "\n".join([*lines, *(reasons or [context.failure_event.message or ""])])


def _reason(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    cause = error.cause if error is not None and error.cause is not None else error
    return cause.message.strip() if cause is not None else ""


def _post_alert(url: Secret, text: str) -> None:
    """Post ``{"text": ...}``, which Slack, Mattermost and most others show as a message.

    Raises:
        OSError: the address does not answer, or answers with an error.
        ValueError: the address is not a URL.
    """
    post_json(url, {"text": text[:_MOST_CHARACTERS]})


@dg.run_failure_sensor(
    name="run_failures",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description=("Logs why a run failed, and posts it to `SIGLIP_ALERT_WEBHOOK` if that is set."),
)
def run_failures(context: dg.RunFailureSensorContext) -> None:
    """Log a summary of the failed run, and post it to the webhook."""
    summary = _failure_summary(context)
    context.log.error(summary)
    url = Settings.load().alert_webhook
    if url is None:
        return
    try:
        _post_alert(url, summary)
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {url.masked(error)}"
        context.log.error(f"posting to SIGLIP_ALERT_WEBHOOK failed: {reason}; check its address")

"""When the sensor `automation` runs an asset. See docs/decisions/0004-waiting-runs.md and 0130."""

from typing import Any, Final

import dagster as dg
from dagster import AutomationCondition as Is

from siglip_pipeline.defs.partitions import asset_key

# Frames that wait at a time of the first kind are embedded at the next one of the second kind, even
# if others are still made: after 4 to 9 minutes. Reconciliation takes a video for missed after 15.
_BEGINS_TO_COUNT: Final = Is.cron_tick_passed("*/5 * * * *")
_HAS_WAITED: Final = Is.cron_tick_passed("4-59/5 * * * *")

# A run reads its inputs when it begins: those that come while it is under way are not in what it
# makes. Dagster's `since_last_handled` takes the end of that run for an answer to them, too.
# A backfill that has not begun the run yet makes nothing too late: often it makes the inputs first.
# What is seldom true comes first: Dagster asks the rest only of those for which it is.
_REQUESTED: Final = Is.newly_requested() & ~Is.any_deps_updated()
_CAME_TOO_LATE: Final = (
    (Is.run_in_progress() & Is.any_deps_updated()).since(_REQUESTED).with_label("came_too_late")
)
_MADE: Final = Is.newly_updated() & ~Is.any_deps_updated() & ~_CAME_TOO_LATE
_HANDLED: Final = (_REQUESTED | _MADE).with_label("handled")

# What is requested in one tick is one backfill, which makes nothing downstream of a failure, and
# nothing more once it is cancelled: a request with that of its inputs settles nothing.
_HANDLED_ALONE: Final = (
    (_REQUESTED & ~Is.any_deps_match(Is.newly_requested())) | _MADE
).with_label("handled")

_FAILED_LAST_HOUR: Final = (Is.execution_failed() & Is.cron_tick_passed("0 * * * *")).with_label(
    "failed_and_an_hour_has_begun"
)

# What the sensor remembers is gone once its cursor was reset: all that is missing is then newly
# missing, and requested.
_HAS_NEW_FRAMES: Final = (
    (Is.newly_missing() | Is.any_deps_updated()).since(_HANDLED).with_label("has_new_frames")
)


def _any_video_in_progress() -> dg.AutomationCondition[Any]:
    """Return a condition that is true for all videos while the frames or vectors of one are made.

    A condition about a partition asks only for the same partition of other assets. The index has no
    partitions, so its inputs are those of every video.
    """
    of_all_videos = Is.any_deps_in_progress() | Is.any_deps_match(Is.any_deps_in_progress())
    in_progress = Is.asset_matches(asset_key("similarity_index"), of_all_videos)
    return in_progress.with_label("any_video_in_progress")


def _has_waited_long() -> dg.AutomationCondition[Any]:
    """Return a condition that is true at times, for videos whose frames have waited for minutes."""
    # The end of a run is no new beginning for frames that came while it was under way.
    settled = Is.newly_requested() | (Is.newly_updated() & ~_CAME_TOO_LATE)
    counts = (_HAS_NEW_FRAMES & _BEGINS_TO_COUNT).since(settled)
    return (counts & _HAS_WAITED).with_label("has_waited_long")


FRAMES_CHANGED: Final = (
    _HAS_NEW_FRAMES
    & ~Is.any_deps_missing()
    & ~Is.any_deps_in_progress()
    & ~Is.in_progress()
    & (~_any_video_in_progress() | _has_waited_long())
).with_label("frames_changed")
"""Of `frame_embeddings`: the videos of one upload become one backfill, once no video is in work."""

VECTORS_CHANGED: Final = (
    (Is.any_deps_updated() | _FAILED_LAST_HOUR).since(_HANDLED_ALONE)
    & ~Is.any_deps_in_progress()
    & ~Is.in_progress()
).with_label("vectors_changed")
"""Of the assets that are made from all vectors; tried again each hour where the run failed."""

VECTORS_UNMATCHED: Final = (
    (Is.any_deps_updated() | _FAILED_LAST_HOUR).since(_HANDLED)
    & ~Is.any_deps_in_progress()
    & ~Is.in_progress()
).with_label("vectors_unmatched")
"""Of `watch_hits`: what failed is tried again each hour, as nothing else asks for it again."""

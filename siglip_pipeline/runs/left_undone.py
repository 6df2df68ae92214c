"""What runs that failed as a whole have left undone: no video has a reason of its own then."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from siglip_pipeline.records import Stage
from siglip_pipeline.runs.dagster_api import DagsterApi, FailedRun
from siglip_pipeline.stages.run_names import keys_between
from siglip_pipeline.store.videos import VideoState
from siglip_pipeline.uploads.names import partition_key

_STATE_BEFORE: Final[Mapping[str, VideoState]] = {
    Stage.FRAMES: "pending",
    Stage.VECTORS: "frames",
    Stage.INDEX: "embedded",
}
"""The state of a video of which an asset is yet to be made."""


def left_undone(
    api: DagsterApi, runs: Iterable[FailedRun], states: Mapping[str, VideoState]
) -> Iterator[tuple[FailedRun, set[str]]]:
    """Yield each failed run that has left some videos undone, with these.

    Args:
        api: the running Dagster.
        runs: of it.
        states: of videos, by path.

    Raises:
        LaunchError: Dagster does not answer.
    """
    for run in runs:
        # Of a run without partitions that was to have some, nobody expected anything.
        made = [a for a in run.assets if (a == Stage.INDEX) == (run.ends is None)]
        before = {_STATE_BEFORE.get(asset) for asset in made}
        videos = {video for video, state in states.items() if state in before}
        if videos and run.ends is not None:
            covered = {*run.ends}
            if len(covered) > 1:
                covered = {*keys_between(api.partition_keys(made[0]), *run.ends)}
            videos = {video for video in videos if partition_key(video) in covered}
        if videos:
            yield run, videos

"""Check that uploads, partitions, frames, vectors and the index agree.

Sensors and runs react to changes. This check compares everything that is stored, so that a missed
change is found within a day.
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from siglip_pipeline.errors import DamagedFramesError, FrameStoreError, FrameStoreVersionError
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.live_index import live_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoRow, VideoStore
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.uploads.names import partition_key, shown
from siglip_pipeline.uploads.upload_store import UploadStore, is_in_shard
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore

ABANDONED_SECONDS = 86_400.0
"""Age from which a draft of frames was left by a killed process."""

AWAITED_SECONDS = 900.0
"""Time within which sensors and the daemon begin the next step for a video."""

PAUSE_SECONDS = 5.0
"""Time between the two surveys, in which a step that was about to begin has begun."""

Repair = Literal["taken up again", "partition removed", "reported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A disagreement between two places about one video."""

    video: str
    """Path below UPLOADS; empty for the whole collection."""
    problem: str
    repair: Repair
    """What was done; ``partition removed`` is left to the caller."""
    partition: str | None = None
    """The partition to remove."""
    is_awaited: bool = False
    """The next step may be about to begin: count it only if nothing has happened for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """Counts of each place, and where they differ."""

    uploads: int
    partitions: int
    videos: int
    frames: int
    """Stored frames, according to the database."""
    vectors: int
    """Vectors of the active model."""
    indexed: int
    """Frames that the live index covers."""
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InDagster:
    """The state of Dagster at one moment. Videos are named by their paths."""

    partitions: Set[str]
    """Videos with a partition."""
    strays: Set[str] = frozenset()
    """Partitions that no upload can have, and that no run covers."""
    busy: Set[str] = frozenset()
    """Videos of queued or active runs: they are not compared."""
    recent: Set[str] = frozenset()
    """Videos whose run ended so recently that the next one may not be created yet."""
    is_quiet: bool = True
    """No run is unfinished or has ended recently: the index must be complete."""


@dataclass(slots=True)
class _Survey:
    """What one survey of all places found."""

    uploads: int
    partitions: int
    videos: int
    differences: list[Difference] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    miscounted: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """The places to compare."""

    uploads: UploadStore
    frame_store: FrameStore
    database: Database
    in_dagster: Callable[[], InDagster]
    shard: str | None
    model_id: int | None
    verify_frames: bool
    awaited_seconds: float


def reconcile(
    *,
    uploads: UploadStore,
    frame_store: FrameStore,
    database: Database,
    in_dagster: Callable[[], InDagster],
    shard: str | None = None,
    verify_frames: bool = False,
    awaited_seconds: float = AWAITED_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
) -> Reconciliation:
    """Compare all places, and have missing results made again.

    The places are read one after the other while sensors and runs continue. So a difference
    counts only if a second survey finds it too, if no run processed the video meanwhile, and,
    where the next step may be about to begin, if nothing happened to the video for
    ``awaited_seconds``.

    Args:
        uploads: the files.
        frame_store: the stored frames.
        database: the record of each video, and its vectors.
        in_dagster: returns the state of Dagster; called before and after each survey.
        shard: the shard of the collection that is compared; the index is one for all shards.
        verify_frames: check the checksum of every stored frame, not only the footers.
        awaited_seconds: how long the next step for a video may take to begin.
        pause_seconds: time between the two surveys; the second is made only if the first finds
            a difference.

    Raises:
        UploadsUnavailableError: the uploads cannot be listed.
    """
    model = ModelStore(database).active()
    places = _Places(
        uploads=uploads,
        frame_store=frame_store,
        database=database,
        in_dagster=in_dagster,
        shard=shard,
        model_id=model.model_id if model else None,
        verify_frames=verify_frames,
        awaited_seconds=awaited_seconds,
    )
    survey = _survey(places)
    differences = survey.differences
    if differences:
        time.sleep(pause_seconds)
        survey = _survey(places, only={difference.video for difference in differences})
        differences = [d for d in differences if d in survey.differences]
        _repair(places, survey, differences)
    frame_store.remove_abandoned_drafts(older_than_seconds=ABANDONED_SECONDS)
    return _report(places, survey, differences)


def _report(places: _Places, survey: _Survey, differences: Sequence[Difference]) -> Reconciliation:
    counts = VideoStore(places.database).counts(places.model_id)
    index = None if places.model_id is None else live_index(places.database, places.model_id)
    return Reconciliation(
        uploads=survey.uploads,
        partitions=survey.partitions,
        videos=survey.videos,
        frames=counts.frames,
        vectors=counts.vectors,
        indexed=index.frames if index else 0,
        differences=tuple(differences),
    )


def _survey(places: _Places, *, only: Set[str] | None = None) -> _Survey:
    """Compare all places once; with ``only``, these videos alone."""
    before = places.in_dagster()
    listing, refused = places.uploads.survey()
    listed = {upload.path for upload in listing}
    rows = {
        row.video: row
        for row in VideoStore(places.database).list(model_id=places.model_id)
        if is_in_shard(row.video, places.shard)
    }
    partitions = len(before.partitions) + len(before.strays)
    survey = _Survey(uploads=len(listed), partitions=partitions, videos=len(rows))
    videos = {*listed, *before.partitions, *rows} - before.busy
    found = [
        _compare(
            video,
            rows.get(video),
            lambda video: _footer(places, survey, video),
            listed=video in listed,
            has_partition=video in before.partitions,
        )
        for video in sorted(videos if only is None else videos & only)
    ]
    if places.model_id is not None:
        found += _compare_vectors(places, places.model_id, survey, rows)
    after = places.in_dagster()
    survey.differences = _settled(places, [d for d in found if d is not None], before, after)
    survey.differences += [
        Difference(
            video=shown(key),
            problem="a partition that no upload can have",
            repair="partition removed",
            partition=key,
        )
        for key in sorted(before.strays & after.strays)
    ]
    survey.differences += [
        Difference(video=shown(file.path), problem=file.reason, repair="reported")
        for file in refused
    ]
    if before.is_quiet and after.is_quiet:
        survey.differences += _compare_index(places)
    return survey


def _footer(places: _Places, survey: _Survey, video: str) -> FrameFileMetadata:
    """Read the footer of a video's frames, or all of them; note down which are damaged."""
    store = places.frame_store
    try:
        return store.verify(video) if places.verify_frames else store.metadata(video)
    except DamagedFramesError:
        survey.damaged.add(video)
        raise


def _settled(
    places: _Places, found: Sequence[Difference], before: InDagster, after: InDagster
) -> list[Difference]:
    """Return the differences that no run works on, and whose next step is not about to begin."""
    moved = AnnouncedUploads(places.database).moved_within(
        timedelta(seconds=places.awaited_seconds)
    )
    busy = {*before.busy, *after.busy}
    about_to_begin = {*before.recent, *after.recent, *moved}
    return [
        d for d in found if d.video not in busy and not (d.is_awaited and d.video in about_to_begin)
    ]


def _repair(places: _Places, survey: _Survey, differences: Sequence[Difference]) -> None:
    """Have videos that differ processed again. The caller changes the state of Dagster."""
    videos = {d.video for d in differences if d.repair == "taken up again"}
    for video in videos & survey.damaged:
        VideoStore(places.database).mark_frames_damaged(video)
    if places.model_id is not None:
        VectorStore(places.database).mark_outdated(
            places.model_id, sorted(videos & survey.miscounted)
        )
    AnnouncedUploads(places.database).announce_again(sorted(videos))


def _compare(
    video: str,
    row: VideoRow | None,
    footer_of: Callable[[str], FrameFileMetadata],
    *,
    listed: bool,
    has_partition: bool,
) -> Difference | None:
    """Return the first difference between a video's upload, partition, row and stored frames."""

    def again(problem: str, *, is_awaited: bool = False) -> Difference:
        return Difference(
            video=video, problem=problem, repair="taken up again", is_awaited=is_awaited
        )

    if row is None and not listed:
        return Difference(
            video=video,
            problem="a partition without upload and without any result",
            repair="partition removed",
            partition=partition_key(video),
        )
    if row is None or not listed:
        return None  # a new or a deleted upload, which the sensors handle
    if not has_partition:
        return again("known, but Dagster has no partition for it", is_awaited=True)
    if row.state == "pending":
        return again("announced, but neither sampled nor failed", is_awaited=True)
    if row.sha256 is None:
        return None  # it failed, and the reason is recorded
    try:
        stored = footer_of(video)
    except FrameStoreVersionError as error:
        return Difference(video=video, problem=str(error), repair="reported")
    except FrameStoreError as error:
        return again(str(error))
    if (stored.frames, stored.source_sha256) != (row.frames, row.sha256):
        return again(
            f"the frame store holds {counted(stored.frames, 'frame')} of "
            f"{stored.source_sha256[:8]}, the database knows of {row.frames} of {row.sha256[:8]}"
        )
    return None


def _compare_vectors(
    places: _Places, model_id: int, survey: _Survey, rows: Mapping[str, VideoRow]
) -> list[Difference]:
    """Return videos whose vectors are missing, or are not as many as were recorded."""
    miscounted = VectorStore(places.database).miscounted(model_id)
    survey.miscounted = miscounted.keys() & rows.keys()
    found = [
        Difference(
            video=video,
            problem=f"{counted(stored, 'vector')} stored, {recorded} recorded",
            repair="taken up again",
        )
        for video, (stored, recorded) in miscounted.items()
        if video in rows
    ]
    return found + [
        Difference(
            video=video,
            problem="sampled, but never embedded",
            repair="taken up again",
            is_awaited=True,
        )
        for video, row in rows.items()
        if row.state == "frames" and video not in survey.miscounted
    ]


def _compare_index(places: _Places) -> list[Difference]:
    """Return a difference unless the live index covers every vector."""
    if places.model_id is None:
        return []
    index = live_index(places.database, places.model_id)
    vectors = VideoStore(places.database).counts(places.model_id).vectors
    if index is None or index.frames == vectors:
        return []
    problem = f"the index covers {index.frames} of {counted(vectors, 'vector')}"
    return [Difference(video="", problem=problem, repair="reported")]

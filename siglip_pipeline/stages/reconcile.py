"""The count check: uploads, partitions, frames, vectors and the index must agree.

Everything else in this project reacts to changes. This looks at all there is, so that whatever a
reaction missed is found within a day.
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
from siglip_pipeline.uploads.names import shown
from siglip_pipeline.uploads.upload_store import UploadStore, is_in_part
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore

ABANDONED_SECONDS = 86_400.0
"""A draft of frames that nobody has written to for so long belongs to a process that was killed."""

AWAITED_SECONDS = 900.0
"""Ticks, and the daemon that makes runs of them, begin the next step for a video within so long."""

PAUSE_SECONDS = 5.0
"""Between two looks: what was being handed on in the first has arrived in the second."""

Repair = Literal["taken up again", "partition removed", "reported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two places that do not agree about one video."""

    video: str
    """Path below UPLOADS; empty where the whole collection is meant."""
    problem: str
    repair: Repair
    """What was done about it, or is to be done by the caller (``partition removed``)."""
    is_awaited: bool = False
    """What is missing may be on its way: it counts once nothing has happened for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What there is in each place, and where they differ."""

    uploads: int
    partitions: int
    videos: int
    frames: int
    """Stored frames, as the database knows them."""
    vectors: int
    """Of the active model."""
    indexed: int
    """Frames that the live index answers for."""
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InDagster:
    """What Dagster holds at one moment. Videos are named by their paths."""

    partitions: Set[str]
    """Videos that there is a partition for."""
    busy: Set[str] = frozenset()
    """Videos that a run works on, or waits to: they are left alone."""
    recent: Set[str] = frozenset()
    """Videos that a run ended with so lately that the next one may not be there yet."""
    is_quiet: bool = True
    """No run is unfinished, or has ended lately: the index is as it is to be."""


@dataclass(slots=True)
class _Look:
    """What one look at all places found."""

    listed: int = 0
    partitions: int = 0
    videos: int = 0
    differences: list[Difference] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    miscounted: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where to look."""

    uploads: UploadStore
    frame_store: FrameStore
    database: Database
    in_dagster: Callable[[], InDagster]
    part: str | None
    model_id: int | None
    verify_frames: bool
    awaited_seconds: float


def reconcile(
    *,
    uploads: UploadStore,
    frame_store: FrameStore,
    database: Database,
    in_dagster: Callable[[], InDagster],
    part: str | None = None,
    verify_frames: bool = False,
    awaited_seconds: float = AWAITED_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
) -> Reconciliation:
    """Compare all places; have what is missing made again.

    The places are read one after the other while sensors and runs go on. So a difference counts
    only if a second look finds it too, if no run was over the video meanwhile, and, where the next
    step may be on its way, if nothing was done about the video for `awaited_seconds`.

    Args:
        uploads: the files.
        frame_store: the stored frames.
        database: what is known of each video, and its vectors.
        in_dagster: tells what Dagster holds at the moment; asked before and after each look.
        part: the part of the collection that is looked at; the index is one for all parts.
        verify_frames: read every stored picture against its checksum, not only the footers.
        awaited_seconds: how long the next step for a video may take to begin.
        pause_seconds: between the two looks; there is no second one where the first finds nothing.

    Raises:
        UploadsUnavailableError: the uploads cannot be listed.
    """
    model = ModelStore(database).active()
    places = _Places(
        uploads=uploads,
        frame_store=frame_store,
        database=database,
        in_dagster=in_dagster,
        part=part,
        model_id=model.model_id if model else None,
        verify_frames=verify_frames,
        awaited_seconds=awaited_seconds,
    )
    look = _look(places)
    differences = look.differences
    if differences:
        time.sleep(pause_seconds)
        look = _look(places, only={difference.video for difference in differences})
        differences = [d for d in differences if d in look.differences]
        _repair(places, look, differences)
    frame_store.remove_abandoned_drafts(older_than_seconds=ABANDONED_SECONDS)
    counts = VideoStore(database).counts(places.model_id)
    index = live_index(database, places.model_id) if places.model_id is not None else None
    return Reconciliation(
        uploads=look.listed,
        partitions=look.partitions,
        videos=look.videos,
        frames=counts.frames,
        vectors=counts.vectors,
        indexed=index.frames if index else 0,
        differences=tuple(differences),
    )


def _look(places: _Places, *, only: Set[str] | None = None) -> _Look:
    """Look at all places once; with `only`, compare these videos alone."""
    records = VideoStore(places.database)
    before = places.in_dagster()
    listing, refused = places.uploads.survey()
    listed = {upload.path for upload in listing}
    rows = {
        row.video: row
        for row in records.list(model_id=places.model_id)
        if is_in_part(row.video, places.part)
    }
    look = _Look(listed=len(listed), partitions=len(before.partitions), videos=len(rows))

    def footer_of(video: str) -> FrameFileMetadata:
        store = places.frame_store
        try:
            return store.verify(video) if places.verify_frames else store.metadata(video)
        except DamagedFramesError:
            look.damaged.add(video)
            raise

    wanted = {*listed, *before.partitions, *rows} - before.busy
    found = [
        _compare(
            video,
            rows.get(video),
            footer_of,
            listed=video in listed,
            keyed=video in before.partitions,
        )
        for video in sorted(wanted if only is None else wanted & only)
    ]
    if places.model_id is not None:
        found += _compare_vectors(places, look, rows)
    after = places.in_dagster()
    moved = AnnouncedUploads(places.database).moved_within(
        timedelta(seconds=places.awaited_seconds)
    )
    on_the_way = {*before.recent, *after.recent, *moved}
    look.differences = [
        d
        for d in found
        if d is not None
        and d.video not in before.busy
        and d.video not in after.busy
        and not (d.is_awaited and d.video in on_the_way)
    ]
    look.differences += [
        Difference(video=shown(file.path), problem=file.reason, repair="reported")
        for file in refused
    ]
    if before.is_quiet and after.is_quiet:
        look.differences += _compare_index(places)
    return look


def _repair(places: _Places, look: _Look, differences: Sequence[Difference]) -> None:
    """Have what differs taken up again; what Dagster holds is the caller's to change."""
    videos = {d.video for d in differences if d.repair == "taken up again"}
    for video in videos & look.damaged:
        VideoStore(places.database).frames_are_damaged(video)
    if places.model_id is not None:
        VectorStore(places.database).mark_outdated(
            places.model_id, sorted(videos & look.miscounted)
        )
    AnnouncedUploads(places.database).announce_again(sorted(videos))


def _compare(
    video: str,
    row: VideoRow | None,
    footer_of: Callable[[str], FrameFileMetadata],
    *,
    listed: bool,
    keyed: bool,
) -> Difference | None:
    """The first thing that is wrong with a video, seen from its upload and its frames."""

    def again(problem: str, *, is_awaited: bool = False) -> Difference:
        return Difference(
            video=video, problem=problem, repair="taken up again", is_awaited=is_awaited
        )

    if row is None and not listed:
        return Difference(
            video=video,
            problem="a partition without upload and without any result",
            repair="partition removed",
        )
    if row is None or not listed:
        return None  # a new upload, or one that was deleted: the sensors' everyday work
    if not keyed:
        return again("known, but Dagster has no partition for it", is_awaited=True)
    if row.state == "pending":
        return again("announced, but neither sampled nor failed", is_awaited=True)
    if row.sha256 is None:
        return None  # it failed, with a reason
    try:
        stored = footer_of(video)
    except FrameStoreVersionError as error:
        return Difference(video=video, problem=str(error), repair="reported")
    except FrameStoreError as error:
        return again(str(error))
    if (stored.frames, stored.source_sha256) != (row.frames, row.sha256):
        return again(
            f"the frame store holds {stored.frames} frames of {stored.source_sha256[:8]}, the "
            f"database knows of {row.frames} of {row.sha256[:8]}"
        )
    return None


def _compare_vectors(
    places: _Places, look: _Look, rows: Mapping[str, VideoRow]
) -> list[Difference]:
    """Videos whose vectors are not as many as they were recorded to be, or are missing."""
    assert places.model_id is not None
    miscounted = VectorStore(places.database).miscounted(places.model_id)
    look.miscounted = miscounted.keys() & rows.keys()
    found = [
        Difference(
            video=video,
            problem=f"{stored} vectors are stored, {recorded} were recorded",
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
        if row.state == "frames" and video not in look.miscounted
    ]


def _compare_index(places: _Places) -> list[Difference]:
    """Whether the live index answers for every vector."""
    if places.model_id is None:
        return []
    index = live_index(places.database, places.model_id)
    vectors = VideoStore(places.database).counts(places.model_id).vectors
    if index is None or index.frames == vectors:
        return []
    problem = f"the index answers for {index.frames} of {vectors} vectors"
    return [Difference(video="", problem=problem, repair="reported")]

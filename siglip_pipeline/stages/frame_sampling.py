"""The first stage: an upload to stored frames."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from siglip_pipeline.errors import (
    DamagedFramesError,
    FrameStoreError,
    FrameStoreVersionError,
    UploadError,
    VideoError,
)
from siglip_pipeline.records import Stage, Upload, VideoInfo
from siglip_pipeline.stages.duplicates import FramesPlan, plan_frames
from siglip_pipeline.stages.stage_results import note_failure, version_of
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.decode_options import frame_recipe
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_many
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore
from siglip_pipeline.video.sampling import Sampling

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesStored:
    """The sampled frames of one video are in the frame store."""

    video: str
    stored: FrameFileMetadata
    damaged_share: float
    report: FrameReport | None
    """What decoding cost; None when nothing was decoded."""
    reused_from: str | None = None
    """The video of the same content whose frames were taken over."""

    @property
    def data_version(self) -> str:
        """Equal for equal content and sampling."""
        return version_of(self.stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesOptions:
    """Which frames are sampled, and how they are decoded and stored."""

    sampling: Sampling
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    workers: int = 0
    """Videos decoded at once, one process each; 0: one per CPU core."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "FramesOptions":
        """Return the options that the environment asks for."""
        return cls(
            sampling=Sampling.parse(settings.sampling),
            decode=DecodeOptions.from_settings(settings),
            workers=settings.decode_workers,
        )

    @property
    def recipe(self) -> str:
        """Return all that decides which frames are stored, and how."""
        return frame_recipe(self.sampling, self.decode)


def sample_videos(
    videos: Sequence[str],
    *,
    uploads: UploadStore,
    frame_store: FrameStore,
    database: Database,
    options: FramesOptions,
    force: bool = False,
) -> Iterator[FramesStored | VideoError]:
    """Sample the frames of each video into the frame store, several videos at once.

    Args:
        videos: paths below UPLOADS.
        options: which frames, and how they are stored.
        force: decode even what is current, or stored for another video of the same content.

    Yields:
        One outcome per video, as they finish.
    """
    stage = _FramesStage(uploads, frame_store, VideoStore(database), options.recipe)
    waiting: list[Upload] = []
    for video in videos:
        try:
            upload = uploads.get(video)
        except UploadError as error:
            yield stage.failed(VideoError(video, str(error)))
            continue
        try:
            current = None if force else stage.current(upload)
        except FrameStoreVersionError as error:
            # Two versions of this program at work: the older one leaves the newer one's files.
            yield stage.failed(VideoError(video, str(error)), upload)
            continue
        if current is None:
            waiting.append(upload)
        else:
            yield current

    plans: Iterable[FramesPlan] = [FramesPlan(decode=waiting)]
    if not force:
        plans = plan_frames(
            waiting,
            uploads=uploads,
            records=stage.records,
            sampling=stage.recipe,
            options=options.decode,
            workers=options.workers,
        )
    orphans: list[str] = []
    for plan in plans:
        for upload, reason in plan.failed:
            yield stage.failed(reason, upload)
        for upload, twin in plan.stored:
            taken = stage.take_over(upload, twin.video, twin.damaged_share or 0.0)
            if taken is None:  # the other one's frames are gone: this one can be decoded
                plan.decode.append(upload)
            else:
                yield taken
        yield from _decode(plan, orphans, uploads, frame_store, stage, options)
    if orphans:
        yield from sample_videos(
            orphans,
            uploads=uploads,
            frame_store=frame_store,
            database=database,
            options=options,
            force=force,
        )


def _decode(
    plan: FramesPlan,
    orphans: list[str],
    uploads: UploadStore,
    frame_store: FrameStore,
    stage: "_FramesStage",
    options: FramesOptions,
) -> Iterator[FramesStored | VideoError]:
    """Decode what a plan says; ``orphans`` gets followers whose double is another file now."""
    planned = {upload.path: upload for upload in plan.decode}
    results = extract_many(
        plan.decode,
        uploads,
        frame_store,
        sampling=options.sampling,
        options=options.decode,
        workers=options.workers,
    )
    for upload, result in results:
        alike = plan.followers.get(upload.path, [])
        if alike and not _is_still(uploads, planned[upload.path]):
            orphans += [follower.path for follower in alike]
            alike = []
        if isinstance(result, VideoError):
            yield stage.failed(result, upload)
            for follower in alike:
                yield stage.failed(VideoError(follower.path, result.reason), follower)
            continue
        yield stage.decoded(upload, result)
        for follower in alike:
            taken = stage.take_over(follower, upload.path, result.damaged_share)
            yield taken or stage.failed(
                VideoError(follower.path, f"the frames of its double {upload.path} are gone"),
                follower,
            )


def _is_still(uploads: UploadStore, upload: Upload) -> bool:
    """Whether an upload is the file that it was."""
    try:
        return uploads.get(upload.path).fingerprint == upload.fingerprint
    except UploadError:
        return False


class _FramesStage:
    """What `sample_videos` does with one upload."""

    def __init__(
        self, uploads: UploadStore, frame_store: FrameStore, records: VideoStore, recipe: str
    ) -> None:
        self.records = records
        self.recipe = recipe
        self._uploads = uploads
        self._frame_store = frame_store

    def current(self, upload: Upload) -> FramesStored | None:
        """The stored frames, when they are what decoding the upload again would give."""
        row = self.records.get(upload.path)
        if (
            row is None
            or row.source_fingerprint != upload.fingerprint
            or row.sampling != self.recipe
        ):
            return None
        try:
            stored = self._frame_store.verify(upload.path)  # all of it: what is damaged is no use
        except FrameStoreVersionError:
            raise
        except FrameStoreError:
            return None
        if stored.source_sha256 != row.sha256 or stored.sampling != self.recipe:
            return None
        return FramesStored(
            video=upload.path, stored=stored, damaged_share=row.damaged_share or 0.0, report=None
        )

    def take_over(self, upload: Upload, twin: str, damaged_share: float) -> FramesStored | None:
        """Give an upload the frames of a video of the same content; None if they are no use."""
        try:
            stored = self._frame_store.verify(twin)  # what is damaged must not be passed on
            self._frame_store.copy(twin, upload.path)
        except DamagedFramesError:
            self.records.frames_are_damaged(twin)
            return None
        except FrameStoreError:
            return None
        self._record(upload, stored.info, stored.source_sha256, stored.frames, damaged_share)
        return FramesStored(
            video=upload.path,
            stored=stored,
            damaged_share=damaged_share,
            report=None,
            reused_from=twin,
        )

    def decoded(self, upload: Upload, report: FrameReport) -> FramesStored:
        """Record what decoding gave."""
        self._record(
            # As it was when it was read: a file that changed since is out of date at once.
            upload,
            report.info,
            report.source_sha256,
            report.frames,
            report.damaged_share,
            report.source_fingerprint,
        )
        return FramesStored(
            video=upload.path,
            stored=self._frame_store.metadata(upload.path),
            damaged_share=report.damaged_share,
            report=report,
        )

    def failed(self, error: VideoError, upload: Upload | None = None) -> VideoError:
        """Record a failure."""
        return note_failure(self.records, error, Stage.FRAMES, upload)

    def _record(
        self,
        upload: Upload,
        info: VideoInfo,
        sha256: str,
        frames: int,
        damaged_share: float,
        source_fingerprint: str | None = None,
    ) -> None:
        self.records.record_frames(
            upload=upload,
            info=info,
            source_sha256=sha256,
            sampling=self.recipe,
            frames=frames,
            damaged_share=damaged_share,
            source_fingerprint=source_fingerprint or upload.fingerprint,
        )

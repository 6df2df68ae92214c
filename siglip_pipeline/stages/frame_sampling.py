"""The first stage: an upload to stored frames."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from siglip_pipeline.cpu import available_cores
from siglip_pipeline.errors import (
    DamagedFramesError,
    FrameStoreError,
    FrameStoreVersionError,
    UploadError,
    VideoError,
    VideoInterruptedError,
)
from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.stages.duplicates import FramesPlan, plan_frames
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.stages.stage_results import NoFrames, note_failure, version_of
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.failed_contents import FailedContent, FailedContents
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import FrameReport, extract_many
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore
from siglip_pipeline.video.hashes import sha256_many


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesStored:
    """The sampled frames of one video, stored in the frame store."""

    video: str
    stored: FrameFileMetadata
    damaged_share: float
    report: FrameReport | None
    """What decoding cost; None where nothing was decoded."""
    reused_from: str | None = None
    """The video of the same content whose frames were copied."""

    @property
    def data_version(self) -> str:
        """Return a version that is equal for equal content and sampling."""
        return version_of(self.stored)


FramesOutcome = FramesStored | NoFrames | VideoError
"""Of one video; an error is a failure that is no fault of its file."""


def sample_videos(
    videos: Sequence[str],
    *,
    uploads: UploadStore,
    frame_store: FrameStore,
    database: Database,
    options: FramesOptions,
    force: bool = False,
) -> Iterator[FramesOutcome]:
    """Sample the frames of each video into the frame store, several videos at once.

    Args:
        videos: paths below UPLOADS.
        options: which frames, and how they are stored.
        force: decode even what is current, or stored for another video of the same content.

    Yields:
        One outcome per video, as they finish.
    """
    stage = _FramesStage(uploads, frame_store, database, options, force=force)
    remaining = list(videos)
    while remaining:
        waiting = yield from stage.skip_current(remaining)
        remaining = yield from stage.sample(waiting)


_Outcomes = Generator[FramesOutcome, None, list[str]]


class _FramesStage:
    """Find what has to be decoded, decode it, and record the outcomes."""

    def __init__(
        self,
        uploads: UploadStore,
        frame_store: FrameStore,
        database: Database,
        options: FramesOptions,
        *,
        force: bool,
    ) -> None:
        self._uploads = uploads
        self._frame_store = frame_store
        self._records = VideoStore(database)
        self._failed_contents = FailedContents(database, conditions=options.conditions)
        self._options = options
        self._recipe = options.recipe
        self._force = force

    def skip_current(self, videos: Iterable[str]) -> Generator[FramesOutcome, None, list[Upload]]:
        """Yield videos that are current or not available; return the uploads that remain."""
        waiting: list[Upload] = []
        for video in videos:
            try:
                upload = self._uploads.get(video)
            except UploadError as error:
                yield self._without_frames(VideoError(video, str(error)))
                continue
            try:
                current = None if self._force else self._current(upload)
            except FrameStoreVersionError as error:
                # A newer version of this program wrote the file: an older one must not replace it.
                yield self._failed(VideoError(video, str(error)), upload)
                continue
            if current is None:
                waiting.append(upload)
            else:
                yield current
        return waiting

    def sample(self, waiting: Sequence[Upload]) -> _Outcomes:
        """Decode uploads, or copy the frames of equal content; return the videos to try again."""
        again: list[str] = []
        for plan in self._plans(waiting):
            for upload, reason in plan.failed:
                yield self._without_frames(reason, upload)
            for upload, failure in plan.failed_before:
                yield self._failed_again(upload, failure)
            for upload, row in plan.stored:
                copied = self._reuse(upload, row.video, row.sha256, row.damaged_share or 0.0)
                if copied is None:  # those frames are gone or damaged: decode this upload
                    plan.decode.append(upload)
                else:
                    yield copied
            again += yield from self._decode(plan)
        return again

    def _plans(self, waiting: Sequence[Upload]) -> Iterable[FramesPlan]:
        if self._force:
            return [FramesPlan(decode=list(waiting))]
        return plan_frames(
            waiting,
            uploads=self._uploads,
            records=self._records,
            failed_contents=self._failed_contents,
            sampling=self._recipe,
            options=self._options.decode,
            workers=self._options.workers,
        )

    def _decode(self, plan: FramesPlan) -> _Outcomes:
        """Decode canonical uploads and give their frames to the duplicates.

        Returns:
            Duplicates whose canonical upload changed meanwhile: their content may differ now.
        """
        again: list[str] = []
        failed: list[Upload] = []
        planned = {upload.path: upload for upload in plan.decode}
        results = extract_many(
            plan.decode,
            self._uploads,
            self._frame_store,
            sampling=self._options.sampling,
            options=self._options.decode,
            workers=self._options.workers,
        )
        for upload, result in results:
            duplicates = plan.duplicates.of(upload.path)
            if duplicates and self._has_changed(planned[upload.path]):
                again += [duplicate.path for duplicate in duplicates]
                duplicates = []
            if isinstance(result, VideoError):
                if not result.retryable:
                    failed += [upload, *duplicates]
                yield self._not_decoded(result, upload)
            else:
                yield self._decoded(upload, result)
            for duplicate in duplicates:
                yield self._duplicate_outcome(duplicate, upload.path, result)
        self._note_contents(failed)
        return again

    def _note_contents(self, failed: Sequence[Upload]) -> None:
        """Record what failed, so that a change of the file's times alone costs a hash.

        Entity tags of remote storage change with the content: those uploads are not read again.
        """
        local = [upload for upload in failed if upload.changed_at is not None]
        options, workers = self._options.decode, self._options.workers or available_cores()
        for upload, sha256 in sha256_many(local, self._uploads, options=options, workers=workers):
            if isinstance(sha256, str) and not self._has_changed(upload):
                self._failed_contents.note(upload, sha256)

    def _has_changed(self, upload: Upload) -> bool:
        try:
            return self._uploads.get(upload.path).fingerprint != upload.fingerprint
        except UploadError:
            return True

    def _duplicate_outcome(
        self, duplicate: Upload, canonical: str, result: FrameReport | VideoError
    ) -> FramesOutcome:
        """Return the outcome of a duplicate, given that of its canonical video."""
        if isinstance(result, VideoError):
            return self._not_decoded(type(result)(duplicate.path, result.reason), duplicate)
        gone = f"the frames of its canonical video {canonical} are gone"
        reused = self._reuse(duplicate, canonical, result.source_sha256, result.damaged_share)
        return reused or self._failed(VideoInterruptedError(duplicate.path, gone), duplicate)

    def _current(self, upload: Upload) -> FramesStored | None:
        """Return the stored frames if decoding the upload again would give the same."""
        row = self._records.get(upload.path)
        if (
            row is None
            or not upload.has_fingerprint(row.source_fingerprint)
            or row.sampling != self._recipe
        ):
            return None
        try:
            stored = self._frame_store.verify(upload.path)  # every frame: damage means decode again
        except FrameStoreVersionError:
            raise
        except FrameStoreError:
            return None
        if stored.source_sha256 != row.sha256 or stored.sampling != self._recipe:
            return None
        if row.stage is not None:  # the file was gone or broken meanwhile, and is back
            self._records.clear_failure(upload.path, Stage.FRAMES)
        return FramesStored(
            video=upload.path, stored=stored, damaged_share=row.damaged_share or 0.0, report=None
        )

    def _reuse(
        self, upload: Upload, source: str, sha256: str | None, damaged_share: float
    ) -> FramesStored | None:
        """Give an upload the stored frames of its content; None if they are gone or damaged.

        Args:
            source: the video whose frames they are; it may be the upload, written again unchanged.
            sha256: hash of the content.
        """
        try:
            stored = self._frame_store.verify(source)  # damaged frames must not be copied
            if stored.source_sha256 != sha256 or stored.sampling != self._recipe:
                return None
            if source != upload.path:
                self._frame_store.copy(source, upload.path)
        except DamagedFramesError:
            self._records.mark_frames_damaged(source)
            return None
        except FrameStoreError:
            return None
        self._record(upload, stored, damaged_share)
        return FramesStored(
            video=upload.path,
            stored=stored,
            damaged_share=damaged_share,
            report=None,
            reused_from=None if source == upload.path else source,
        )

    def _decoded(self, upload: Upload, report: FrameReport) -> FramesStored:
        """Record the result of decoding the upload, as it was read."""
        stored = self._frame_store.metadata(upload.path)
        self._record(upload, stored, report.damaged_share)
        return FramesStored(
            video=upload.path,
            stored=stored,
            damaged_share=report.damaged_share,
            report=report,
        )

    def _not_decoded(self, error: VideoError, upload: Upload) -> FramesOutcome:
        """Record why an upload was not decoded: the file's fault, unless it was interrupted."""
        return (
            self._failed(error, upload) if error.retryable else self._without_frames(error, upload)
        )

    def _failed_again(self, upload: Upload, failure: FailedContent) -> NoFrames:
        """Record the same failure of a file that has changed and not its content."""
        outcome = self._without_frames(VideoError(upload.path, failure.reason), upload)
        self._failed_contents.note(upload, failure.sha256)
        return outcome

    def _without_frames(self, error: VideoError, upload: Upload | None = None) -> NoFrames:
        """Record why a file gives no frames.

        Raises:
            UploadsUnavailableError: the storage is not mounted; no file is to blame.
        """
        self._uploads.check_mounted()
        self._failed(error, upload)
        try:
            kept = self._frame_store.metadata(error.video)
        except FrameStoreError:
            kept = None
        return NoFrames(video=error.video, reason=error.reason, kept=kept)

    def _failed(self, error: VideoError, upload: Upload | None = None) -> VideoError:
        """Record a failure."""
        return note_failure(self._records, error, Stage.FRAMES, upload)

    def _record(self, upload: Upload, stored: FrameFileMetadata, damaged_share: float) -> None:
        self._records.record_frames(
            upload=upload,
            info=stored.info,
            source_sha256=stored.source_sha256,
            sampling=self._recipe,
            frames=stored.frames,
            damaged_share=damaged_share,
            warnings=stored.warnings,
        )

"""The two per-video stages, free of Dagster: an upload to stored frames, frames to stored vectors.

Both take paths, skip what is current, take over what another video of the same content has, go on
after a failure, and record in the database what became of each video.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from siglip_pipeline.errors import (
    DamagedFramesError,
    FrameStoreError,
    UploadError,
    VectorError,
    VideoError,
)
from siglip_pipeline.records import EmbeddingBatch, FrameBatch, Upload, VideoInfo
from siglip_pipeline.reuse import plan_frames
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_many
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore
from siglip_pipeline.video.jobs import frame_recipe
from siglip_pipeline.video.sampling import Sampling

if TYPE_CHECKING:
    from siglip_pipeline.siglip.engine import EmbeddingEngine

FRAMES_STAGE = "video_frames"
VECTORS_STAGE = "frame_embeddings"


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
        return _version(self.stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsStored:
    """The vectors of one video are in the database."""

    video: str
    vectors: int
    frames: int
    """Stored frames, each of which has to have a vector."""
    model_key: str
    written: bool
    """False when the same vectors were stored already."""
    frames_version: str
    reused_from: str | None = None
    """The video of the same content whose vectors were taken over."""

    @property
    def data_version(self) -> str:
        """Equal for equal frames and model."""
        return f"{self.frames_version}-{self.model_key}"


def current_recipe(settings: Settings) -> str:
    """What decides which frames are stored, and how, under these settings."""
    return frame_recipe(Sampling.parse(settings.sampling), DecodeOptions.from_settings(settings))


def sample_videos(
    videos: Sequence[str],
    *,
    uploads: UploadStore,
    frame_store: FrameStore,
    database: Database,
    settings: Settings,
    force: bool = False,
) -> Iterator[FramesStored | VideoError]:
    """Sample the frames of each video into the frame store, several videos at once.

    Args:
        videos: paths below UPLOADS.
        force: decode even what is current, or stored for another video of the same content.

    Yields:
        One outcome per video, as they finish.
    """
    stage = _FramesStage(uploads, frame_store, VideoStore(database), current_recipe(settings))
    waiting: list[Upload] = []
    for video in videos:
        try:
            upload = uploads.get(video)
        except UploadError as error:
            yield stage.failed(VideoError(video, str(error)))
            continue
        current = None if force else stage.current(upload)
        if current is None:
            waiting.append(upload)
        else:
            yield current

    followers: dict[str, list[Upload]] = {}
    if not force:
        plan = plan_frames(waiting, uploads=uploads, records=stage.records, sampling=stage.recipe)
        waiting, followers = plan.decode, plan.followers
        for upload, twin in plan.stored:
            taken = stage.take_over(upload, twin.video, twin.damaged_share or 0.0)
            if taken is None:  # the other one's frames are gone: this one can be decoded
                waiting.append(upload)
            else:
                yield taken

    planned = {upload.path: upload for upload in waiting}
    orphans: list[str] = []
    results = extract_many(
        waiting,
        uploads,
        frame_store,
        sampling=Sampling.parse(settings.sampling),
        options=DecodeOptions.from_settings(settings),
        workers=settings.decode_workers,
    )
    for upload, result in results:
        alike = followers.get(upload.path, [])
        if alike and not _is_still(uploads, planned[upload.path]):
            orphans += [follower.path for follower in alike]  # its double is another file now
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
    if orphans:
        yield from sample_videos(
            orphans,
            uploads=uploads,
            frame_store=frame_store,
            database=database,
            settings=settings,
            force=force,
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
            stored = self._frame_store.metadata(upload.path)
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
        return _failed(self.records, error, FRAMES_STAGE, upload)

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


def embed_videos(
    videos: Sequence[str],
    *,
    frame_store: FrameStore,
    database: Database,
    model_id: int,
    model_key: str,
    engine: "Callable[[], EmbeddingEngine]",
    force: bool = False,
    ahead: Sequence[str] = (),
) -> Iterator[VectorsStored | VideoError]:
    """Embed the stored frames of each video and write the vectors, one transaction per video.

    Args:
        videos: paths below UPLOADS, embedded in this order.
        engine: called once, and only when there is something to embed.
        force: embed even what is current, or stored for another video of the same content.
        ahead: further videos, embedded after the others while the model is loaded; those that
            have no frames yet are passed over.

    Yields:
        One outcome per video.
    """
    stage = _VectorsStage(VideoStore(database), VectorStore(database), model_id, model_key)
    to_embed: dict[str, FrameFileMetadata] = {}
    followers: dict[str, list[str]] = {}
    leaders: dict[str, str] = {}
    for video in dict.fromkeys([*videos, *ahead]):
        try:
            stored = frame_store.metadata(video)
        except FrameStoreError as error:
            if video in videos:
                yield stage.failed(
                    VideoError(video, str(error)), damaged=isinstance(error, DamagedFramesError)
                )
            continue
        if not force and (done := stage.current(video, stored) or stage.take_over(video, stored)):
            yield done
        elif not force and (leader := leaders.get(_version(stored))):
            followers.setdefault(leader, []).append(video)
        else:
            leaders[_version(stored)] = video
            to_embed[video] = stored
    if not to_embed:
        return

    damaged: set[str] = set()

    def frames_of(video: str) -> Iterator[FrameBatch]:
        try:
            yield from frame_store.read(video)
        except DamagedFramesError:
            damaged.add(video)
            raise

    def streams() -> Iterator[tuple[str, Iterable[FrameBatch]]]:
        for video in to_embed:
            yield video, frames_of(video)

    frames_total = sum(stored.frames for stored in to_embed.values())
    for result in engine().embed(streams(), frames_total=frames_total):
        if isinstance(result, VideoError):
            outcome: VectorsStored | VideoError = stage.failed(
                result, damaged=result.video in damaged
            )
        else:
            outcome = stage.load(result, to_embed[result.video], force=force)
        yield outcome
        for follower in followers.get(outcome.video, []):
            if isinstance(outcome, VideoError):
                yield stage.failed(VideoError(follower, outcome.reason))
            else:
                yield stage.take_over(follower, to_embed[outcome.video]) or stage.failed(
                    VideoError(follower, f"the vectors of its double {outcome.video} are gone")
                )


class _VectorsStage:
    """What `embed_videos` does with one video."""

    def __init__(
        self, records: VideoStore, vectors: VectorStore, model_id: int, model_key: str
    ) -> None:
        self._records = records
        self._vectors = vectors
        self._model_id = model_id
        self._model_key = model_key

    def current(self, video: str, stored: FrameFileMetadata) -> VectorsStored | None:
        """The stored vectors, when they are of these frames."""
        if self._vectors.is_current(
            self._model_id, video, source_sha256=stored.source_sha256, sampling=stored.sampling
        ):
            return self._stored(video, stored, stored.frames, written=False)
        return None

    def take_over(self, video: str, stored: FrameFileMetadata) -> VectorsStored | VideoError | None:
        """Give a video the vectors of one with the same content; None if there is none."""
        twin = self._vectors.twin(
            self._model_id, source_sha256=stored.source_sha256, sampling=stored.sampling
        )
        if twin is None:
            return None
        batch = replace(self._vectors.vectors(self._model_id, twin), video=video)
        if len(batch) != stored.frames:
            return None
        return self.load(batch, stored, reused_from=twin)

    def load(
        self,
        batch: EmbeddingBatch,
        stored: FrameFileMetadata,
        *,
        force: bool = False,
        reused_from: str | None = None,
    ) -> VectorsStored | VideoError:
        """Write the vectors of a video."""
        try:
            self._vectors.load(
                self._model_id,
                batch,
                source_sha256=stored.source_sha256,
                sampling=stored.sampling,
                force=force,
            )
        except VectorError as error:
            return self.failed(VideoError(batch.video, str(error)))
        return self._stored(batch.video, stored, len(batch), written=True, reused_from=reused_from)

    def failed(self, error: VideoError, *, damaged: bool = False) -> VideoError:
        """Record a failure; damaged frames are made again."""
        if damaged:
            self._records.frames_are_damaged(error.video)
        return _failed(self._records, error, VECTORS_STAGE)

    def _stored(
        self,
        video: str,
        stored: FrameFileMetadata,
        vectors: int,
        *,
        written: bool,
        reused_from: str | None = None,
    ) -> VectorsStored:
        return VectorsStored(
            video=video,
            vectors=vectors,
            frames=stored.frames,
            model_key=self._model_key,
            written=written,
            frames_version=_version(stored),
            reused_from=reused_from,
        )


def _version(stored: FrameFileMetadata) -> str:
    return f"{stored.source_sha256[:16]}-{stored.sampling.replace(' ', '-')}"


def _failed(
    records: VideoStore, error: VideoError, stage: str, upload: Upload | None = None
) -> VideoError:
    records.record_failure(error.video, stage=stage, reason=error.reason, upload=upload)
    return error

"""The two per-video stages, free of Dagster: an upload to stored frames, frames to stored vectors.

Both take paths, skip what is current, go on after a failure, and record in the database what
became of each video.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from siglip_pipeline.errors import FrameStoreError, UploadError, VectorError, VideoError
from siglip_pipeline.records import EmbeddingBatch, FrameBatch, Upload
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_many
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore
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
    report: FrameReport | None
    """What decoding cost; None when current frames were stored already."""

    @property
    def data_version(self) -> str:
        """Equal for equal content and sampling."""
        return f"{self.stored.source_sha256[:16]}-{self.stored.sampling}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsStored:
    """The vectors of one video are in the database."""

    video: str
    vectors: int
    model_key: str
    written: bool
    """False when the same vectors were stored already."""
    frames_version: str

    @property
    def data_version(self) -> str:
        """Equal for equal frames and model."""
        return f"{self.frames_version}-{self.model_key}"


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
        force: decode even what is current.

    Yields:
        One outcome per video, as they finish.
    """
    records = VideoStore(database)
    sampling = Sampling.parse(settings.sampling)
    to_decode: list[Upload] = []
    for video in videos:
        try:
            upload = uploads.get(video)
        except UploadError as error:
            yield _failed(records, VideoError(video, str(error)), FRAMES_STAGE)
            continue
        stored = None if force else _current_frames(records, frame_store, upload, str(sampling))
        if stored is None:
            to_decode.append(upload)
        else:
            yield FramesStored(video=video, stored=stored, report=None)

    results = extract_many(
        to_decode,
        uploads,
        frame_store,
        sampling=sampling,
        options=DecodeOptions.from_settings(settings),
        workers=settings.decode_workers,
    )
    for upload, result in results:
        if isinstance(result, VideoError):
            yield _failed(records, result, FRAMES_STAGE, upload)
            continue
        records.record_frames(
            upload=upload,
            info=result.info,
            source_sha256=result.source_sha256,
            sampling=result.sampling,
            frames=result.frames,
            damaged_share=result.damaged_share,
            source_fingerprint=result.source_fingerprint,
        )
        yield FramesStored(
            video=upload.path, stored=frame_store.metadata(upload.path), report=result
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
) -> Iterator[VectorsStored | VideoError]:
    """Embed the stored frames of each video and write the vectors, one transaction per video.

    Args:
        videos: paths below UPLOADS, embedded in this order.
        engine: called once, and only when there is something to embed.
        force: embed even what is current.

    Yields:
        One outcome per video.
    """
    records = VideoStore(database)
    vectors = VectorStore(database)
    to_embed: dict[str, FrameFileMetadata] = {}
    for video in videos:
        try:
            stored = frame_store.metadata(video)
        except FrameStoreError as error:
            yield _failed(records, VideoError(video, str(error)), VECTORS_STAGE)
            continue
        if not force and vectors.is_current(
            model_id, video, source_sha256=stored.source_sha256, sampling=stored.sampling
        ):
            yield VectorsStored(
                video=video,
                vectors=stored.frames,
                model_key=model_key,
                written=False,
                frames_version=_version(stored),
            )
        else:
            to_embed[video] = stored
    if not to_embed:
        return

    def streams() -> Iterator[tuple[str, Iterable[FrameBatch]]]:
        for video in to_embed:
            yield video, frame_store.read(video)

    frames_total = sum(stored.frames for stored in to_embed.values())
    for result in engine().embed(streams(), frames_total=frames_total):
        if isinstance(result, VideoError):
            yield _failed(records, result, VECTORS_STAGE)
            continue
        yield _load(records, vectors, result, to_embed[result.video], model_id, model_key)


def _load(
    records: VideoStore,
    vectors: VectorStore,
    batch: EmbeddingBatch,
    stored: FrameFileMetadata,
    model_id: int,
    model_key: str,
) -> VectorsStored | VideoError:
    try:
        vectors.load(model_id, batch, source_sha256=stored.source_sha256, sampling=stored.sampling)
    except VectorError as error:
        return _failed(records, VideoError(batch.video, str(error)), VECTORS_STAGE)
    return VectorsStored(
        video=batch.video,
        vectors=len(batch),
        model_key=model_key,
        written=True,
        frames_version=_version(stored),
    )


def _version(stored: FrameFileMetadata) -> str:
    return f"{stored.source_sha256[:16]}-{stored.sampling}"


def _current_frames(
    records: VideoStore, frame_store: FrameStore, upload: Upload, sampling: str
) -> FrameFileMetadata | None:
    """The stored frames, when they are what decoding the upload again would give."""
    row = records.get(upload.path)
    if row is None or row.source_fingerprint != upload.fingerprint or row.sampling != sampling:
        return None
    try:
        stored = frame_store.metadata(upload.path)
    except FrameStoreError:
        return None
    current = stored.source_sha256 == row.sha256 and stored.sampling == sampling
    return stored if current else None


def _failed(
    records: VideoStore, error: VideoError, stage: str, upload: Upload | None = None
) -> VideoError:
    records.record_failure(error.video, stage=stage, reason=error.reason, upload=upload)
    return error

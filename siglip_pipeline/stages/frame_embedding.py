"""The second stage: stored frames to stored vectors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from siglip_pipeline.errors import (
    DamagedFramesError,
    FrameStoreError,
    VectorError,
    VideoError,
)
from siglip_pipeline.records import EmbeddingBatch, FrameBatch, Stage
from siglip_pipeline.stages.stage_results import note_failure, version_of
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore

if TYPE_CHECKING:
    from siglip_pipeline.siglip.engine import EmbeddingEngine


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


def embed_videos(
    videos: Sequence[str],
    *,
    frame_store: FrameStore,
    database: Database,
    model_id: int,
    model_key: str,
    engine: "Callable[[], EmbeddingEngine]",
    force: bool = False,
    ahead: Callable[[], Iterable[str]] = tuple,
) -> Iterator[VectorsStored | VideoError]:
    """Embed the stored frames of each video and write the vectors, one transaction per video.

    Args:
        videos: paths below UPLOADS, embedded in this order.
        engine: called once, and only when there is something to embed.
        force: embed even what is current, or stored for another video of the same content.
        ahead: further videos, embedded after the others while the model is loaded; those that
            have no frames yet are passed over. Called once, and only when there is something to
            embed; it has no effect with ``force``, which would embed them once more later.

    Yields:
        One outcome per video.
    """
    stage = _VectorsStage(VideoStore(database), VectorStore(database), model_id, model_key)
    to_embed: dict[str, FrameFileMetadata] = {}
    followers: dict[str, list[str]] = {}
    leaders: dict[str, str] = {}

    def sort_out(video: str, *, asked_for: bool) -> VectorsStored | VideoError | None:
        """The outcome where nothing has to be embedded, or cannot be; else None."""
        try:
            stored = frame_store.metadata(video)
        except FrameStoreError as error:
            damaged = isinstance(error, DamagedFramesError)
            failure = VideoError(video, str(error))
            return stage.failed(failure, damaged=damaged) if asked_for else None
        if not force and (done := stage.current(video, stored) or stage.take_over(video, stored)):
            return done
        if not force and (leader := leaders.get(version_of(stored))):
            followers.setdefault(leader, []).append(video)
        else:
            leaders[version_of(stored)] = video
            to_embed[video] = stored
        return None

    asked_for = dict.fromkeys(videos)
    for video in asked_for:
        if (outcome := sort_out(video, asked_for=True)) is not None:
            yield outcome
    if not to_embed:
        return
    for video in dict.fromkeys(() if force else ahead()):
        if video not in asked_for and (outcome := sort_out(video, asked_for=False)) is not None:
            yield outcome

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
            embedded: VectorsStored | VideoError = stage.failed(
                result, damaged=result.video in damaged
            )
        else:
            embedded = stage.load(result, to_embed[result.video], force=force)
        yield embedded
        for follower in followers.get(embedded.video, []):
            if isinstance(embedded, VideoError):
                yield stage.failed(VideoError(follower, embedded.reason))
            else:
                yield stage.take_over(follower, to_embed[embedded.video]) or stage.failed(
                    VideoError(follower, f"the vectors of its double {embedded.video} are gone")
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
        return note_failure(self._records, error, Stage.VECTORS)

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
            frames_version=version_of(stored),
            reused_from=reused_from,
        )

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
from siglip_pipeline.stages.duplicates import Duplicates
from siglip_pipeline.stages.stage_results import WITHOUT_FRAMES, note_failure, version_of
from siglip_pipeline.store.claims import Claims, open_claims
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore

if TYPE_CHECKING:
    from siglip_pipeline.siglip.engine import EmbeddingEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsStored:
    """The vectors of one video, stored in the database."""

    video: str
    vectors: int
    frames: int
    """Stored frames; each has a vector."""
    model_key: str
    written: bool
    """False where the stored vectors were current."""
    frames_version: str
    reused_from: str | None = None
    """The video of the same content whose vectors were copied."""
    without_frames: str | None = None
    """Why there are no frames, and so no vectors."""

    @property
    def data_version(self) -> str:
        """Return a version that is equal for equal frames and model."""
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
        engine: called once, and only if there is something to embed.
        force: embed even what is current, or stored for another video of the same content.
        ahead: further videos to embed while the model is loaded; those without frames, and those
            that another process embeds, are skipped. Called once, and only if there is something to
            embed. Ignored with ``force``, which would embed them again in their own run.

    Yields:
        One outcome per video.
    """
    stage = _VectorsStage(
        frame_store, VideoStore(database), VectorStore(database), model_id, model_key, force=force
    )
    requested = dict.fromkeys(videos)
    for video in requested:
        yield from stage.plan(video)
    if not stage.to_embed:
        return
    for video in dict.fromkeys(() if force else ahead()):
        if video not in requested:
            yield from stage.plan(video, is_ahead=True)
    with open_claims(database, model_id) as claims:
        yield from stage.embed(engine(), claims)


class _VectorsStage:
    """Plan which videos to embed, then embed them."""

    def __init__(
        self,
        frame_store: FrameStore,
        records: VideoStore,
        vectors: VectorStore,
        model_id: int,
        model_key: str,
        *,
        force: bool,
    ) -> None:
        self.to_embed: dict[str, FrameFileMetadata] = {}
        """The canonical videos whose frames the model has to see."""
        self._duplicates: Duplicates[str] = Duplicates()
        self._ahead: set[str] = set()
        """Those of them that another run was asked for."""
        self._done_elsewhere: list[VectorsStored] = []
        self._damaged: set[str] = set()
        self._frame_store = frame_store
        self._records = records
        self._vectors = vectors
        self._model_id = model_id
        self._model_key = model_key
        self._force = force

    def plan(self, video: str, *, is_ahead: bool = False) -> Iterator[VectorsStored | VideoError]:
        """Add a video to `to_embed`, or yield its outcome if it need not or cannot be embedded."""
        try:
            stored = self._frame_store.metadata(video)
        except FrameStoreError as error:
            if not is_ahead:
                yield self._without_frames(video) or self._failed(
                    VideoError(video, str(error)), damaged=isinstance(error, DamagedFramesError)
                )
            return
        if self._force:
            self.to_embed[video] = stored
        elif done := self._current(video, stored) or self._copy_stored(video, stored):
            yield done
        elif self._duplicates.add(version_of(stored), video, video):
            self.to_embed[video] = stored
            if is_ahead:
                self._ahead.add(video)

    def embed(
        self, engine: "EmbeddingEngine", claims: Claims
    ) -> Iterator[VectorsStored | VideoError]:
        """Embed what is planned; give each duplicate the vectors of its canonical video."""
        frames_total = sum(stored.frames for stored in self.to_embed.values())
        streams = (
            (video, self._frames_of(video))
            for video, stored in self.to_embed.items()
            if self._take(video, stored, claims)
        )
        for result in engine.embed(streams, frames_total=frames_total):
            outcome = self._store(result)
            claims.release(outcome.video)
            yield from self._with_duplicates(outcome)
        for done in self._done_elsewhere:
            yield from self._with_duplicates(done)

    def _take(self, video: str, stored: FrameFileMetadata, claims: Claims) -> bool:
        """Return whether to embed a video now; called by the thread that reads frames.

        Another process may have embedded it since it was planned, or be at it. The latter is left
        to that process if this one is only ahead of the video's own run.
        """
        if self._force:
            return True
        is_mine = claims.take(video)
        if done := self._current(video, stored):
            self._done_elsewhere.append(done)
            if is_mine:
                claims.release(video)
            return False
        return is_mine or video not in self._ahead

    def _with_duplicates(
        self, outcome: VectorsStored | VideoError
    ) -> Iterator[VectorsStored | VideoError]:
        yield outcome
        for duplicate in self._duplicates.of(outcome.video):
            yield self._duplicate_outcome(duplicate, outcome)

    def _frames_of(self, video: str) -> Iterator[FrameBatch]:
        try:
            yield from self._frame_store.read(video)
        except DamagedFramesError:
            self._damaged.add(video)
            raise

    def _store(self, result: EmbeddingBatch | VideoError) -> VectorsStored | VideoError:
        if isinstance(result, VideoError):
            return self._failed(result, damaged=result.video in self._damaged)
        return self._load(result, self.to_embed[result.video])

    def _duplicate_outcome(
        self, duplicate: str, canonical: VectorsStored | VideoError
    ) -> VectorsStored | VideoError:
        """Return the outcome of a duplicate, given that of its canonical video."""
        if isinstance(canonical, VideoError):
            return self._failed(VideoError(duplicate, canonical.reason))
        return self._copy_stored(duplicate, self.to_embed[canonical.video]) or self._failed(
            VideoError(duplicate, f"the vectors of its canonical video {canonical.video} are gone")
        )

    def _current(self, video: str, stored: FrameFileMetadata) -> VectorsStored | None:
        """Return the stored vectors if they are of these frames."""
        if self._vectors.is_current(
            self._model_id, video, source_sha256=stored.source_sha256, sampling=stored.sampling
        ):
            self._records.clear_failure(video, Stage.VECTORS)  # e.g. its frames were gone meanwhile
            return self._stored(video, stored, stored.frames, written=False)
        return None

    def _copy_stored(
        self, video: str, stored: FrameFileMetadata
    ) -> VectorsStored | VideoError | None:
        """Give a video the vectors of one with the same content; None if there is none."""
        source = self._vectors.video_of_content(
            self._model_id, source_sha256=stored.source_sha256, sampling=stored.sampling
        )
        if source is None:
            return None
        batch = replace(self._vectors.vectors(self._model_id, source), video=video)
        if len(batch) != stored.frames:
            return None
        return self._load(batch, stored, reused_from=source)

    def _load(
        self, batch: EmbeddingBatch, stored: FrameFileMetadata, *, reused_from: str | None = None
    ) -> VectorsStored | VideoError:
        """Write the vectors of a video."""
        try:
            self._vectors.load(
                self._model_id,
                batch,
                source_sha256=stored.source_sha256,
                sampling=stored.sampling,
                force=self._force,
            )
        except VectorError as error:
            return self._failed(VideoError(batch.video, str(error)))
        return self._stored(batch.video, stored, len(batch), written=True, reused_from=reused_from)

    def _failed(self, error: VideoError, *, damaged: bool = False) -> VideoError:
        """Record a failure; mark damaged frames so that they are sampled again."""
        if damaged:
            self._records.mark_frames_damaged(error.video)
        return note_failure(self._records, error, Stage.VECTORS)

    def _without_frames(self, video: str) -> VectorsStored | None:
        """Return the outcome of a video whose file gives no frames; None if they are missing."""
        row = self._records.get(video)
        if row is None or row.stage != Stage.FRAMES or self._frame_store.exists(video):
            return None
        self._records.clear_failure(video, Stage.VECTORS)
        return VectorsStored(
            video=video,
            vectors=0,
            frames=0,
            model_key=self._model_key,
            written=False,
            frames_version=WITHOUT_FRAMES,
            without_frames=row.reason,
        )

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

"""Collect the state of the pipeline: `siglip-pipeline status`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from siglip_pipeline.records import Refused, Upload
from siglip_pipeline.stages.freshness import OutOfDate, Wanted, out_of_date
from siglip_pipeline.stages.partition_limit import partition_warning
from siglip_pipeline.stages.status_document import (
    DecodingStatus,
    FailedVideo,
    IndexStatus,
    ModelStatus,
    OutOfDateVideos,
    RefusedFile,
    StatusDocument,
    VideoTotals,
    WatchTotals,
)
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.live_index import LiveIndex, live_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import Failure, VideoStore, VideoWarnings
from siglip_pipeline.store.watches import WatchStore
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.names import shown
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.sandbox import SandboxReport, sandbox_report, sandbox_warning

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """The state of the whole pipeline at one moment."""

    total: int
    indexed: int
    failed: int
    pending: int
    decoded: int
    embedded: int
    failures: tuple[Failure, ...]
    refused: tuple[Refused, ...]
    """Files that cannot become videos; found only in a local folder, where listing is cheap."""
    frames: int
    vectors: int
    out_of_date: OutOfDate
    warnings: tuple[str, ...]
    """Problems that will become failures unless a person solves them."""
    video_warnings: tuple[VideoWarnings, ...]
    """Videos that are indexed, but not wholly or not surely as their files show them."""
    model: ModelStatus | None
    index: IndexStatus | None
    watches: WatchTotals

    sandbox: SandboxReport
    """Which restrictions hold for processes that decode on this machine."""

    @property
    def is_index_current(self) -> bool:
        """Return whether the index covers every vector."""
        return self.index is not None and self.index.rows == self.vectors

    def document(self) -> StatusDocument:
        """Return the document that ``status --json`` prints."""
        return StatusDocument(
            videos=VideoTotals(
                total=self.total, indexed=self.indexed, failed=self.failed, pending=self.pending
            ),
            failures=tuple(
                FailedVideo(video=failure.video, stage=failure.stage, reason=failure.reason)
                for failure in self.failures
            ),
            refused=tuple(
                RefusedFile(file=shown(file.path), reason=file.reason) for file in self.refused
            ),
            out_of_date=OutOfDateVideos(
                frames=len(self.out_of_date.frames), vectors=len(self.out_of_date.vectors)
            ),
            warnings=self.warnings,
            video_warnings=self.video_warnings,
            frames=self.frames,
            vectors=self.vectors,
            model=self.model,
            index=self.index,
            decoding=DecodingStatus(sandbox=str(self.sandbox), closed=self.sandbox.is_closed),
            watches=self.watches,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusOptions:
    """Where uploads lie, and which results the settings ask for."""

    uploads: SecretUrl
    shard: str | None
    partition_limit: int
    wanted: Wanted

    @classmethod
    def from_settings(cls, settings: "Settings") -> "StatusOptions":
        """Return the options that the environment asks for."""
        return cls(
            uploads=settings.uploads,
            shard=settings.part,
            partition_limit=settings.partition_limit,
            wanted=Wanted.from_settings(settings),
        )


def collect_status(database: Database, options: StatusOptions) -> PipelineStatus:
    """Return the state under the active model, or under the newest while none is active.

    In a local folder, where listing is cheap, count uploads as pending that no sensor has announced
    yet.
    """
    models = ModelStore(database)
    model = models.active() or next(iter(models.list()[::-1]), None)
    videos = VideoStore(database)
    counts = videos.counts(model.model_id if model else None)
    unannounced = 0
    refused: Sequence[Refused] = ()
    listing: Sequence[Upload] = ()
    folder = options.uploads.folder
    if folder is not None and (folder / (options.shard or "")).is_dir():
        uploads = UploadStore(options.uploads, shard=options.shard, settle_seconds=0)
        listing, refused = uploads.survey()
        known = videos.paths()
        unannounced = sum(upload.path not in known for upload in listing)
    index = live_index(database, model.model_id) if model else None
    many = partition_warning(
        AnnouncedUploads(database).count(shard=options.shard) + unannounced,
        shard=options.shard,
        limit=options.partition_limit,
    )
    return PipelineStatus(
        total=counts.total + unannounced,
        indexed=counts.indexed,
        failed=counts.failed,
        pending=counts.pending + unannounced,
        decoded=counts.decoded,
        embedded=counts.embedded,
        failures=tuple(counts.failures),
        refused=tuple(refused),
        frames=counts.frames,
        vectors=counts.vectors,
        out_of_date=out_of_date(database, options.wanted, listing=listing),
        video_warnings=tuple(videos.warnings()),
        warnings=tuple(
            filter(None, (_no_folder(options), many, _no_index(index), sandbox_warning()))
        ),
        model=ModelStatus(name=model.name, key=model.key, dim=model.dim) if model else None,
        index=_index_status(index),
        watches=_watch_totals(database),
        sandbox=sandbox_report(),
    )


def _no_folder(options: StatusOptions) -> str | None:
    folder = options.uploads.folder
    if folder is None or folder.is_dir():
        return None
    return "what SIGLIP_UPLOADS names is no folder, or not there: no video is found in it"


def _no_index(index: LiveIndex | None) -> str | None:
    """Return that every frame is compared because no index has passed, why, and the ways out."""
    if index is None or index.kind != "exact" or index.instead_of is None:
        return None
    return (
        "every frame is compared with each query, which is exact and slow, until an index passes; "
        f"refused was {index.instead_of}"
    )


def _watch_totals(database: Database) -> WatchTotals:
    watches, hits, late, failed = WatchStore(database).totals()
    return WatchTotals(watches=watches, hits=hits, late=late, failed=failed)


def _index_status(index: LiveIndex | None) -> IndexStatus | None:
    if index is None:
        return None
    return IndexStatus(
        kind=index.kind,
        recall_at_10=index.recall_at_10,
        recall_queries=index.recall_queries,
        rows=index.frames,
    )

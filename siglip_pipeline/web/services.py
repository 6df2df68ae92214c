"""The objects that handlers share for the life of the process."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from siglip_pipeline.errors import NothingIndexedError, SiglipPipelineError
from siglip_pipeline.runs.waiting import with_reasons
from siglip_pipeline.search import QueryEmbedder, SearchOptions, SearchService
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.similarity.similar_videos import VideoSimilarityStore
from siglip_pipeline.stages.status import PipelineStatus, StatusOptions, collect_status
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.library import Library
from siglip_pipeline.store.query_log import QueryLog
from siglip_pipeline.store.timelines import TimelineStore, VideoName
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.store.watches import WatchStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.clip_cache import ClipCache, ClipOptions
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.video.picture_decoder import PictureDecoder
from siglip_pipeline.web.encoder import BatchingEmbedder
from siglip_pipeline.web.http_errors import HttpError, busy
from siglip_pipeline.web.kept_pictures import QueryPictures
from siglip_pipeline.web.limits import Turns

logger = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 2.0
_DAGSTER_SECONDS = 2.0
"""How long the state of the pipeline waits for an answer of Dagster."""


@dataclass(slots=True)
class Services:
    """The objects that a request may need."""

    settings: Settings
    database: Database
    embedder: QueryEmbedder
    search: SearchService
    query_log: QueryLog
    videos: VideoStore
    library: Library
    timelines: TimelineStore
    similarity: VideoSimilarityStore
    watches: WatchStore
    uploads: UploadStore
    frames: FrameStore
    decoder: PictureDecoder
    clips: ClipCache
    pictures: QueryPictures
    """Of earlier searches, by their ids."""
    turns: Turns
    """Turns of query pictures: waiting ones occupy no thread."""
    pictures_waiting: threading.Semaphore
    """One for each picture that is searched by or waits: more would occupy all threads."""
    image_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a picture goes through the model: one at a time, as memory allows."""
    model_loaded: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def open(
        cls, settings: Settings, database: Database, embedder: QueryEmbedder | None = None
    ) -> "Services":
        """Make the services over an open database, without loading or reading anything."""
        uploads = UploadStore(settings.uploads, settle_seconds=0)
        embedder = embedder or BatchingEmbedder(ModelOptions.from_settings(settings))
        return cls(
            settings=settings,
            database=database,
            embedder=embedder,
            search=SearchService(
                database, SearchOptions.from_settings(settings), embedder=embedder
            ),
            query_log=QueryLog(database),
            videos=VideoStore(database),
            library=Library(database),
            timelines=TimelineStore(database),
            similarity=VideoSimilarityStore(database),
            watches=WatchStore(database),
            uploads=uploads,
            frames=FrameStore(settings.frame_store_url),
            decoder=PictureDecoder(settings.http_pictures_at_once),
            pictures=QueryPictures(
                settings.home / "query_pictures",
                max_bytes=int(settings.http_pictures_kept_mib * 2**20),
            ),
            clips=ClipCache(uploads, ClipOptions.from_settings(settings)),
            pictures_waiting=threading.Semaphore(
                settings.http_pictures_at_once + settings.http_pictures_waiting
            ),
            turns=Turns(
                at_once=settings.http_pictures_at_once, waiting=settings.http_pictures_waiting
            ),
        )

    def close(self) -> None:
        """Stop the background threads."""
        self.stopping.set()
        self.decoder.close()
        self.clips.close()
        if isinstance(self.embedder, BatchingEmbedder):
            self.embedder.close()

    @contextmanager
    def embedding_picture(self) -> Iterator[None]:
        """Wait for the turn of a picture to go through the model.

        Raises:
            HttpError: 503, too many wait already.
        """
        if not self.pictures_waiting.acquire(blocking=False):
            raise busy("pictures are being searched by")
        try:
            with self.image_lock:
                yield
        finally:
            self.pictures_waiting.release()

    def load_model_in_background(self) -> None:
        """Load the text tower as soon as a model is active."""
        threading.Thread(target=self._load_model, name="load-model", daemon=True).start()

    def is_ready(self) -> bool:
        """Return whether an index is published.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        try:
            return self.search.active_model().active_generation is not None
        except NothingIndexedError:
            return False

    def status(self) -> PipelineStatus:
        """Return the state of the pipeline, and why videos wait: what `status` prints.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        status = collect_status(self.database, StatusOptions.from_settings(self.settings))
        return with_reasons(status, self.database, self.settings, answer_seconds=_DAGSTER_SECONDS)

    def log_query(self, text: str) -> None:
        """Keep the text of a search, if SIGLIP_QUERY_LOG is on."""
        if self.settings.query_log:
            self.query_log.record_or_warn(text)

    def name(self, video_id: int) -> VideoName:
        """Return a video by id.

        Raises:
            HttpError: 404, there is none of this id.
        """
        name = self.timelines.name(video_id)
        if name is None:
            raise unknown_video(video_id)
        return name

    def _load_model(self) -> None:
        while not self.stopping.is_set():
            try:
                self.search.load("text")
            except SiglipPipelineError as error:
                if not isinstance(error, NothingIndexedError) and not error.retryable:
                    logger.error("the text tower cannot be loaded: %s", error)
                    return
            else:
                self.model_loaded.set()
                return
            self.stopping.wait(_LOOK_AGAIN_SECONDS)


def unknown_video(video_id: int) -> HttpError:
    """Return a 404 for an id that the database does not know."""
    return HttpError(404, f"no video has the id {video_id}; /api/videos lists all")


def services_of(request: Request) -> Services:
    """Return the services of the application that a request is for."""
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    return services_of(request)


CurrentServices = Annotated[Services, Depends(_services)]

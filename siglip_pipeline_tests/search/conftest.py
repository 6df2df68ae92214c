"""Indexed films and copies of them, made without Dagster."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from siglip_pipeline.demo.films import DemoVideo, demo_scenes, render_video
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.embeddings import extract_image_embeddings
from siglip_pipeline.siglip.model import get_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import extract_many
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.conftest import collection_settings, shared_collection

SIZE = (160, 120)
SECONDS = 2.0


@dataclass(frozen=True)
class Films:
    """A collection with a real model: films of two seconds a scene."""

    database: Database
    settings: Settings
    service: SearchService
    films: dict[str, DemoVideo]


@pytest.fixture(scope="session")
def films(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Films]:
    def fill(home: Path, url: str) -> None:
        _render(home / "uploads")
        with Database(url) as database:
            index_folder(database, quick_settings(home, url))

    with (
        shared_collection(postgres, tmp_path_factory, "films", fill) as (home, url),
        Database(url) as database,
    ):
        settings = quick_settings(home, url)
        service = SearchService(database, SearchOptions.from_settings(settings))
        yield Films(database, settings, service, _render(home / "uploads"))


def _render(uploads: Path) -> dict[str, DemoVideo]:
    """The films by name; those that are there already are kept."""
    scenes = demo_scenes()
    return {
        name: render_video(
            uploads / name, part, seconds_per_scene=SECONDS, fps=10, size=SIZE, overwrite=False
        )
        for name, part in (("one.mp4", scenes[:6]), ("sub/two.mp4", scenes[8:14]))
    }


def quick_settings(home: Path, url: str) -> Settings:
    """Settings of a collection whose recall is soon measured, and enough whatever it is."""
    return collection_settings(home, url, index_min_recall=0.0, index_recall_queries=4)


def index_folder(database: Database, settings: Settings) -> int:
    """Decode, embed and index what lies in the uploads; the model's id."""
    uploads = UploadStore(settings.uploads, settle_seconds=0)
    frames = FrameStore(settings.frame_store_url)
    model = get_model(ModelOptions.from_settings(settings), tower="image")
    model_id = ModelStore(database).register(model.spec)
    for upload, report in extract_many(
        list(uploads.list()), uploads, frames, sampling="fps:1", workers=1
    ):
        assert not isinstance(report, VideoError), report
        VideoStore(database).record_frames(
            upload=upload,
            info=report.info,
            source_sha256=report.source_sha256,
            sampling=report.sampling,
            frames=report.frames,
            damaged_share=report.damaged_share,
        )
        for batch in frames.read(upload.path, batch_size=10_000):
            vectors_ND = extract_image_embeddings(batch.jpegs, model=model)
            VectorStore(database).load(
                model_id,
                EmbeddingBatch(
                    video=upload.path,
                    frame_index_N=batch.frame_index_N,
                    time_seconds_N=batch.time_seconds_N,
                    embeddings_ND=vectors_ND,
                ),
                source_sha256=report.source_sha256,
                sampling=report.sampling,
            )
    build_index(database, model_id, options=IndexOptions.from_settings(settings), force=True)
    return model_id


def query_frame(film: DemoVideo, second: float, target: Path) -> Path:
    """A still of a film, as a person would cut one out."""
    import av

    with av.open(str(film.path)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= second:
                frame.to_image().save(target)  # type: ignore[no-untyped-call]
                return target
    raise AssertionError(f"{film.path} ends before {second} s")

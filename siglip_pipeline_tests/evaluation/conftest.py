"""The demo's films, indexed with the demo's model and without Dagster."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from siglip_pipeline.demo.films import DemoVideo, render_demo_videos
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline_tests.conftest import shared_collection, shared_films
from siglip_pipeline_tests.search.conftest import index_folder, quick_settings


@dataclass(frozen=True)
class Reels:
    """The collection of `make demo`."""

    database: Database
    settings: Settings
    films: dict[str, DemoVideo]
    model_id: int


@pytest.fixture(scope="session")
def reels(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reels]:
    def fill(home: Path, url: str) -> None:
        shared_films(tmp_path_factory, "demo_videos", home / "uploads", render_demo_videos)
        with Database(url) as database:
            index_folder(database, quick_settings(home, url))

    with (
        shared_collection(postgres, tmp_path_factory, "reels", fill) as (home, url),
        Database(url) as database,
    ):
        uploads = home / "uploads"
        films = {
            film.path.relative_to(uploads).as_posix(): film for film in render_demo_videos(uploads)
        }
        (model,) = ModelStore(database).list()
        yield Reels(database, quick_settings(home, url), films, model.model_id)


def write_lines(path: Path, *lines: str) -> Path:
    """A file of these lines."""
    path.write_text("\n".join(lines) + "\n")
    return path

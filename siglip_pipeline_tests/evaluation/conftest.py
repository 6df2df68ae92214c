"""The demo's films, indexed with the demo's model and without Dagster."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from siglip_pipeline.demo.films import DemoVideo, render_demo_videos
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline_tests.conftest import collection_settings, fresh_database, shared_films
from siglip_pipeline_tests.search.conftest import index_folder


@dataclass(frozen=True)
class Reels:
    """The collection of `make demo`."""

    database: Database
    settings: Settings
    films: dict[str, DemoVideo]
    model_id: int


@pytest.fixture(scope="session")
def reels(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reels]:
    home = tmp_path_factory.mktemp("reels")
    uploads = home / "uploads"
    rendered = shared_films(tmp_path_factory, "demo_videos", uploads, render_demo_videos)
    films = {film.path.relative_to(uploads).as_posix(): film for film in rendered}
    with fresh_database(postgres) as url, Database(url) as database:
        settings = collection_settings(home, url, index_min_recall=0.0, index_recall_queries=4)
        yield Reels(database, settings, films, index_folder(database, settings))


def write_lines(path: Path, *lines: str) -> Path:
    """A file of these lines."""
    path.write_text("\n".join(lines) + "\n")
    return path

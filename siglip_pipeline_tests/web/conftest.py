"""The real service in front of a real index: rendered films, the demo model, Postgres, uvicorn."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver

from siglip_pipeline.demo.films import DemoVideo, demo_scenes, render_video
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.evaluation.annotations import read_judged
from siglip_pipeline.evaluation.evaluating import EvaluationOptions, evaluate
from siglip_pipeline.evaluation.quality_report import QualityReport
from siglip_pipeline.search import SearchOptions
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages.frame_embedding import embed_videos
from siglip_pipeline.stages.frame_sampling import sample_videos
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.stages.watch_documents import WatchShown
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.quality_results import record_quality
from siglip_pipeline.store.watches import WatchStore
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.web.app import create_app
from siglip_pipeline.web.guard import Guard
from siglip_pipeline.web.serve import http_server
from siglip_pipeline_tests.conftest import collection_settings, shared_collection
from siglip_pipeline_tests.web.browser import Page, chromium

SCENES_PER_FILM = 6
SECONDS_PER_SCENE = 2
FRAMES_PER_SECOND = 10


@dataclass(frozen=True)
class Collection:
    """Three indexed films, and a file that is not a film."""

    settings: Settings
    films: dict[str, DemoVideo]

    def ids(self) -> dict[str, int]:
        with (
            Database(self.settings.database_url or "") as database,
            database.connection() as connection,
        ):
            rows = connection.execute("SELECT path, video_id FROM videos").fetchall()
        return {str(path): int(video_id) for path, video_id in rows}


@dataclass(frozen=True)
class Served:
    """A service that listens, and a client of it."""

    url: str
    client: httpx.Client
    app: Guard


Serve = Callable[..., Any]


def _films(folder: Path) -> dict[str, DemoVideo]:
    """Three films below a folder, by name; those that are there already are kept."""
    scenes = demo_scenes()
    names = {"one.mp4": "libx264", "more/two words.webm": "libvpx-vp9", "old.avi": "mpeg4"}
    return {
        name: render_video(
            folder / name,
            scenes[number * SCENES_PER_FILM : (number + 1) * SCENES_PER_FILM],
            seconds_per_scene=SECONDS_PER_SCENE,
            fps=FRAMES_PER_SECOND,
            codec=codec,
            overwrite=False,
        )
        for number, (name, codec) in enumerate(names.items())
    }


@pytest.fixture(scope="session")
def collection(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Collection]:
    def fill(home: Path, url: str) -> None:
        _films(home / "uploads")
        (home / "uploads" / "broken <b>.mp4").write_text("this is no film")
        index_uploads(collection_settings(home, url))

    with shared_collection(postgres, tmp_path_factory, "web", fill) as (home, url):
        yield Collection(collection_settings(home, url), _films(home / "uploads"))


@pytest.fixture(scope="session")
def watch(collection: Collection) -> WatchShown:
    """A standing query for a scene that the collection shows."""
    _, _, scene = collection.films["one.mp4"].timeline[2]
    with Database(collection.settings.database_url or "") as database:
        return WatchShown.of(
            WatchStore(database).add("the gate's", scene.caption, min_probability=0.3)
        )


@pytest.fixture(scope="session")
def evaluated(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> QualityReport:
    """What the newest of two evaluations of the collection found."""
    judged = tmp_path_factory.mktemp("judged") / "judged <b>.jsonl"
    start, end, scene = collection.films["one.mp4"].timeline[2]
    moment = {"video": "one.mp4", "start_seconds": start, "end_seconds": end}
    queries = [
        {"query": scene.caption, "relevant": [moment], "tags": ["seen"]},
        {"query": "a kangaroo", "relevant": [], "tags": ["nothing here"]},
    ]
    judged.write_text("".join(json.dumps(query) + "\n" for query in queries))
    found = []
    with Database(collection.settings.database_url or "") as database:
        for least in (0.0, 0.3):
            changed = collection.settings.model_copy(update={"search_min_probability": least})
            options = EvaluationOptions(search=SearchOptions.from_settings(changed))
            found.append(evaluate(database, read_judged(judged), options))
            record_quality(database, to_json(found[-1]), purpose="command")
    return found[-1]


def index_uploads(settings: Settings) -> None:
    """The pipeline's stages one after the other, in this process."""
    from siglip_pipeline.siglip.engine import EmbeddingEngine
    from siglip_pipeline.siglip.model import get_model

    uploads = UploadStore(settings.uploads, settle_seconds=0)
    frames = FrameStore(settings.frame_store_url)
    with Database(settings.database_url or "") as database:
        videos = [upload.path for upload in uploads.list()]
        for _ in sample_videos(
            videos,
            uploads=uploads,
            frame_store=frames,
            database=database,
            options=FramesOptions.from_settings(settings),
        ):
            pass
        model = get_model(ModelOptions.from_settings(settings), tower="image")
        model_id = ModelStore(database).register(model.spec)
        for _ in embed_videos(
            [video for video in videos if frames.exists(video)],
            frame_store=frames,
            database=database,
            model_id=model_id,
            model_key=model.spec.key,
            engine=lambda: EmbeddingEngine(model),
        ):
            pass
        report = build_index(database, model_id, options=IndexOptions.from_settings(settings))
        assert report.published, report.reason


@contextmanager
def serving(settings: Settings, **changes: Any) -> Iterator[Served]:
    """The service on a free port, on a thread of this process."""
    complete = settings.model_copy(update=changes)
    with Database(complete.database_url or "") as database:
        app = create_app(complete, database)
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        server = http_server(complete, app)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            wait_until(lambda: server.started)
            # Without reading certificates, which takes longer than most tests.
            with httpx.Client(base_url=url, timeout=60, verify=False) as client:
                yield Served(url, client, app)
        finally:
            server.should_exit = True
            thread.join(timeout=30)


def sent(answer: httpx.Response) -> bytes:
    """The body of an answer that is no error; an error is shown before bytes are compared."""
    assert answer.is_success, f"{answer.request.url}: {answer.status_code} {answer.text[:1000]}"
    return answer.content


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this should have happened by now"
        time.sleep(0.05)  # to ask a browser is work for it, the driver and this process


@pytest.fixture(scope="session")
def served(collection: Collection) -> Iterator[Served]:
    with serving(collection.settings) as running:
        yield running


@pytest.fixture(scope="session")
def client(served: Served) -> httpx.Client:
    return served.client


@pytest.fixture
def picture(collection: Collection, tmp_path: Path) -> Path:
    """A still of the third scene of ``more/two words.webm``, made anew."""
    from siglip_pipeline.demo.drawing import render_picture

    _, _, scene = collection.films["more/two words.webm"].timeline[2]
    path = tmp_path / "query.png"
    render_picture(scene).save(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a window."""
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: webdriver.Chrome, served: Served) -> Iterator[Page]:
    """The page in a browser, whose console stays empty."""
    browser.set_window_size(1200, 900)
    page = Page(browser, served.url)
    page.faults()
    yield page
    assert page.faults() == []

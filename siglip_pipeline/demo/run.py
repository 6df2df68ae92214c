"""`siglip-pipeline demo`: the main job, from rendered uploads to found moments."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from siglip_pipeline.demo.drawing import render_picture
from siglip_pipeline.demo.films import DemoVideo, render_demo_videos
from siglip_pipeline.demo.scenes import Scene
from siglip_pipeline.errors import LaunchError
from siglip_pipeline.evaluation.annotations import read_judged
from siglip_pipeline.evaluation.evaluating import EvaluationOptions, evaluate
from siglip_pipeline.evaluation.quality_report import QualityReport
from siglip_pipeline.files.private_files import private_home
from siglip_pipeline.hits import Hit, QueryShown
from siglip_pipeline.runs.dagster_api import DagsterApi
from siglip_pipeline.search import SearchOptions, SearchResult, SearchService
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.services.up import Launcher, launch
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.status import PipelineStatus
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.quality_results import record_quality
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.terminal import console
from siglip_pipeline.terminal.progress import watch_until
from siglip_pipeline.terminal.quality_tables import quality_table
from siglip_pipeline.text.in_words import duration_in_words
from siglip_pipeline.text.json_form import to_json

MODEL_FOLDER = Path(__file__).parent / "model"
JUDGED_QUERIES = Path(__file__).parent / "judged_queries.jsonl"
"""Queries over the demo's videos; ``tools/demo_model/judge.py`` writes them."""
MIN_PROBABILITY = 0.3
"""The demo's searches answer "nothing here" below this, when their quality is measured."""
TEXT_QUERIES = 4
HITS_SHOWN = 3
_GIVE_UP_SECONDS = 600.0
_LOOK_SECONDS = 5.0
"""Time between two looks for a run that failed for good."""


@dataclass(frozen=True, slots=True)
class _Query:
    """A query whose right answer is known."""

    video: str
    start_seconds: float
    end_seconds: float
    scene: Scene

    def answered_by(self, result: SearchResult) -> bool:
        if not result.hits:
            return False
        first = result.hits[0]
        return first.video == self.video and (
            self.start_seconds <= first.time_seconds < self.end_seconds
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAnswer:
    """A query with its result."""

    title: str
    correct: bool
    """Whether the first hit is in the right scene."""
    query: QueryShown
    model: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoDocument:
    """What ``demo --json`` prints."""

    videos: int
    frames: int
    seconds: float
    queries: int
    correct: int
    dagster_url: str
    page_url: str
    results: tuple[DemoAnswer, ...]
    quality: QualityReport
    """How well the demo's judged queries are answered."""


def run_demo(settings: Settings, *, keep_running: bool, quiet: bool) -> DemoDocument:
    """Render videos, index them under Dagster, search, and print the results."""
    began = time.monotonic()
    private_home(settings.home)
    settings = demo_settings(settings)
    private_home(settings.home)  # first: Postgres must be able to enter it
    if not quiet:
        console.err.print("Rendering sample videos …")
    videos = render_demo_videos(Path(settings.uploads))
    if not quiet:
        console.err.print(f"  {len(videos)} videos in {settings.uploads}")
        console.err.print("Starting the database and Dagster …")
    with launch(settings) as launcher:
        if not quiet:
            console.err.print(f"  Dagster UI at {launcher.endpoints.dagster_url}/assets")
            console.err.print(f"  search page at {launcher.endpoints.page_url}")
        with open_database(DatabaseOptions.from_settings(launcher.settings)) as database:
            _take_up_again(database)
            status = _wait(launcher, database, len(videos), quiet=quiet)
            results = _search(database, launcher.settings, videos, quiet=quiet)
            quality = _evaluate(database, launcher.settings)
        document = DemoDocument(
            videos=status.indexed,
            frames=status.frames,
            seconds=round(time.monotonic() - began, 1),
            queries=len(results),
            correct=sum(answer.correct for answer in results),
            dagster_url=launcher.endpoints.dagster_url,
            page_url=launcher.endpoints.page_url,
            results=tuple(results),
            quality=quality,
        )
        if not quiet:
            console.out.print(quality_table(quality))
            _print_summary(document, settings, launcher, keep_running=keep_running)
        if keep_running:
            with contextlib.suppress(KeyboardInterrupt):
                launcher.run()
    return document


def demo_settings(settings: Settings) -> Settings:
    """Return the user's settings with the demo's home, uploads and model."""
    home = settings.home / "demo"
    return settings.model_copy(
        update={
            "home": home,
            "uploads": str(home / "uploads"),
            "frame_store": None,
            "model_name": str(MODEL_FOLDER),
            "model_revision": None,
            "uploads_settle_seconds": 1.0,
            "dagster_port": free_port(settings.dagster_port, host=settings.dagster_host),
            "page_port": free_port(settings.page_port, host=settings.host),
        }
    )


def _take_up_again(database: Database) -> None:
    """Announce what an earlier demo left undone, for example as its runs failed."""
    model = ModelStore(database).active()
    rows = VideoStore(database).list(model_id=model.model_id if model else None)
    AnnouncedUploads(database).announce_again(row.video for row in rows if row.state != "indexed")


def _wait(launcher: Launcher, database: Database, expected: int, *, quiet: bool) -> PipelineStatus:
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    dagster = DagsterApi(launcher.endpoints.dagster_url, api_key=launcher.settings.api_key)
    began, look_at = time.time(), time.monotonic()

    def tick() -> None:
        nonlocal look_at
        launcher.watch()
        if time.monotonic() < look_at:
            return
        look_at = time.monotonic() + _LOOK_SECONDS
        if (failed := dagster.failed_run(since=began)) is not None:
            raise LaunchError(failed)

    def done(status: PipelineStatus) -> bool:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"only {status.indexed} of {expected} videos were indexed within "
                f"{duration_in_words(_GIVE_UP_SECONDS)}; see the runs at "
                f"{launcher.endpoints.dagster_url}/runs and the logs in "
                f"{launcher.settings.home / 'logs'}"
            )
        return status.indexed + status.failed >= expected and status.is_index_current

    return watch_until(database, launcher.settings, expected, done, quiet=quiet, tick=tick)


def _search(
    database: Database, settings: Settings, videos: list[DemoVideo], *, quiet: bool
) -> list[DemoAnswer]:
    service = SearchService(database, SearchOptions.from_settings(settings))
    queries = _queries(videos, Path(settings.uploads))
    results = []
    for query in queries[:-1]:
        result = service.by_text(query.scene.caption, k=HITS_SHOWN)
        results.append(_report(f'text "{query.scene.caption}"', query, result, quiet=quiet))
    pictured = queries[-1]
    picture = settings.home / "query.png"
    render_picture(pictured.scene).save(picture)
    result = service.by_image(picture, k=HITS_SHOWN)
    results.append(_report(f"picture {picture}", pictured, result, quiet=quiet))
    return results


def _evaluate(database: Database, settings: Settings) -> QualityReport:
    """Ask the judged queries over the demo's videos; keep the result, as `evaluate` does."""
    chosen = settings.model_copy(update={"search_min_probability": MIN_PROBABILITY})
    report = evaluate(
        database,
        read_judged(JUDGED_QUERIES),
        EvaluationOptions(search=SearchOptions.from_settings(chosen)),
    )
    record_quality(database, to_json(report), purpose="command")
    return report


def _queries(videos: list[DemoVideo], uploads: Path) -> list[_Query]:
    """Return queries for scenes of several videos: texts, and a picture for the last one."""
    scenes = [
        _Query(video.path.relative_to(uploads).as_posix(), start, end, scene)
        for video in videos
        for start, end, scene in video.timeline
    ]
    step = max(1, len(scenes) // (TEXT_QUERIES + 1))
    return scenes[step // 2 :: step][: TEXT_QUERIES + 1]


def _report(title: str, query: _Query, result: SearchResult, *, quiet: bool) -> DemoAnswer:
    correct = query.answered_by(result)
    if not quiet:
        mark = {0: Text("right", "green") if correct else Text("wrong", "red")}
        console.out.print(
            console.hits_table(title, result.hits, rates_text=result.query.rates_text, mark=mark)
        )
    return DemoAnswer(
        title=title, correct=correct, query=result.query, model=result.model, hits=result.hits
    )


def _print_summary(
    document: DemoDocument, settings: Settings, launcher: Launcher, *, keep_running: bool
) -> None:
    console.out.print(
        f"{document.videos} videos, {document.frames} frames, "
        f"{document.correct} of {document.queries} queries answered by the right moment, "
        f"{duration_in_words(document.seconds)} in all.",
    )
    url = launcher.endpoints.dagster_url
    console.out.print(f"Dagster UI: {url}/assets  runs: {url}/runs")
    console.out.print(f"Search page: {launcher.endpoints.page_url}")
    if keep_running:
        console.out.print("Running until Ctrl-C.")
    else:
        console.out.print("Stopped. `siglip-pipeline demo --keep-running` leaves it up to look at.")

"""What does Dagster cost per video, and does that grow with their number?

N copies of one tiny film are indexed in runs of 32: as partitions under Dagster (registered,
decoded or taken over, embedded with the demo model, every event and check written to Postgres),
and by the same calls of the domain without Dagster, chunk by chunk in turns on a database of their
own. Dagster's cost is the difference. A run's process (start of Python, definitions, instance) is
measured apart: a daemon starts one per run, this script does not.

    python benchmarks/bench_backfill.py [--quick] [--json] [--videos 100 1000 10000]
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from store_report import Case, print_report

from siglip_pipeline import stages
from siglip_pipeline.defs.assets import FRAMES_PER_RUN
from siglip_pipeline.demo.evaluate import MODEL_FOLDER
from siglip_pipeline.demo.scenes import demo_scenes, render_video
from siglip_pipeline.materialize import materialize_videos, pipeline_environment
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.identity import model_spec
from siglip_pipeline.siglip.model import get_models
from siglip_pipeline.store.database import Database, embedded_server, migrate
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.uploads import UploadStore
from siglip_pipeline.video.frame_store import FrameStore

GOAL_GROWTH = 1.1
ASSETS = ("video_frames", "frame_embeddings")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 and 300 videos")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--videos", type=int, nargs="+", default=[100, 1_000, 10_000])
    options = parser.parse_args(arguments)
    sizes = [100, 300] if options.quick else sorted(options.videos)
    cases: list[Case] = []
    smallest: float | None = None
    for size in sizes:
        with home() as settings:
            under_dagster, without = index_both(settings, size)
        cost = (under_dagster - without) / size
        smallest = smallest or cost
        cases.append(
            Case(
                name=f"dagster_{size}_videos",
                value=cost,
                unit="seconds_per_video",
                better="lower",
                reference=f"{sizes[0]} videos",
                reference_value=smallest,
                goal=GOAL_GROWTH,
                note=f"with {under_dagster / size:.3f}, without {without / size:.3f} s a video",
            )
        )
        log(f"{size} videos: {cost:.3f} s of Dagster a video")
    with home() as settings:
        started = run_process_seconds(settings)
    cases.append(
        Case(
            name=f"process_of_a_run_over_{FRAMES_PER_RUN}",
            value=started / FRAMES_PER_RUN,
            unit="seconds_per_video",
            better="lower",
            note=f"{started:.2f} s a run, of which there are two for {FRAMES_PER_RUN} videos",
        )
    )
    print_report("backfill", cases, as_json=options.json)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def home() -> Iterator[Settings]:
    """A fresh home with an embedded database, named in the environment."""
    # In a folder that the user who runs Postgres for root can reach.
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)
        settings = Settings.load(
            home=Path(folder) / "home",
            uploads=str(Path(folder) / "uploads"),
            model_name=str(MODEL_FOLDER),
            device="cpu",
            decode_workers=1,
            uploads_settle_seconds=0,
        )
        with pipeline_environment(settings) as complete:
            yield complete


def index_both(settings: Settings, size: int) -> tuple[float, float]:
    """Seconds with and without Dagster, over all chunks."""
    videos = make_uploads(Path(settings.uploads), size)
    with_dagster = without_dagster = 0.0
    plain = Path(settings.home).parent / "plain"
    server = embedded_server(Settings.load(home=plain))
    with server.lease() as url, Database(url) as database:
        migrate(database)
        for start in range(0, size, FRAMES_PER_RUN):
            chunk = videos[start : start + FRAMES_PER_RUN]
            began = time.perf_counter()
            assert materialize_videos(settings, chunk, assets=ASSETS)
            between = time.perf_counter()
            index_plainly(settings, chunk, FrameStore(str(plain / "frames")), database)
            without_dagster += time.perf_counter() - between
            with_dagster += between - began
    return with_dagster, without_dagster


def make_uploads(folder: Path, size: int) -> list[str]:
    """So many names of one film of two seconds."""
    folder.mkdir(parents=True)
    film = folder.parent / "film.mp4"
    render_video(film, demo_scenes()[:1], seconds_per_scene=2, size=(64, 48), fps=5)
    names = [f"{number:06}.mp4" for number in range(size)]
    for name in names:
        shutil.copyfile(film, folder / name)
    return names


def index_plainly(
    settings: Settings, videos: Sequence[str], frame_store: FrameStore, database: Database
) -> None:
    """What the two assets do, without Dagster."""
    uploads = UploadStore(settings.uploads, settle_seconds=0)
    for _ in stages.sample_videos(
        videos, uploads=uploads, frame_store=frame_store, database=database, settings=settings
    ):
        pass
    spec = model_spec(settings)
    for _ in stages.embed_videos(
        videos,
        frame_store=frame_store,
        database=database,
        model_id=ModelStore(database).register(spec),
        model_key=spec.key,
        engine=lambda: EmbeddingEngine(get_models(settings), batch_size=settings.batch_size),
    ):
        pass


def run_process_seconds(settings: Settings) -> float:
    """Start of a process that loads the definitions and the instance, as every run does."""
    code = (
        "import dagster as dg, siglip_pipeline.definitions as d;"
        "d.defs.resolve_implicit_global_asset_job_def(); dg.DagsterInstance.get().get_runs(limit=1)"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=child_environment(settings), check=True)
        seconds.append(time.perf_counter() - began)
    return median(seconds)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    main()

"""A divided collection: a code location for each shard, one Dagster, one database, one search.

A process is of one shard from the first import of the definitions, so each location is a process of
its own here too, forked from one that has imported the libraries.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from starlette.testclient import TestClient

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import SettingsError, UploadNotFoundError
from siglip_pipeline.records import Stage
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline.stages.partition_limit import partition_warning
from siglip_pipeline.stages.status import StatusOptions, collect_status
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.web.app import create_app
from siglip_pipeline_tests.conftest import fresh_database

PARTS = ("north", "south/eu-1")

LOCATIONS = """
import json, os, sys
from importlib import import_module

for module in (
    "siglip_pipeline.siglip.engine",
    "siglip_pipeline.siglip.model",
    "transformers.models.siglip.modeling_siglip",
    "dagster",
):
    import_module(module)


def index_what_is_there():
    import dagster as dg
    from siglip_pipeline.definitions import defs
    from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
    from siglip_pipeline.defs.sensors import new_uploads
    from siglip_pipeline.runs.in_process import materialize_videos
    from siglip_pipeline.services.home import pipeline_environment
    from siglip_pipeline.settings import Settings

    with pipeline_environment(Settings.load()) as settings, dg.DagsterInstance.get() as instance:
        context = dg.build_sensor_context(
            instance=instance, definitions=defs, resources=dict(defs.resources)
        )
        result = new_uploads(context)
        (run,) = result.run_requests
        videos = list(instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME))
        ok = materialize_videos(settings, videos)
        new_uploads(context)
        said = {"set": VIDEOS_PARTITIONS_NAME, "videos": videos, "ok": ok}
        return {**said, "run": [key.to_user_string() for key in run.asset_selection]}


for environment in json.loads(os.environ["LOCATIONS"]):
    if os.fork() == 0:
        os.environ.update(environment)
        print(json.dumps(index_what_is_there()), flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""

WORKER = """
import json
from dagster._core.definitions.reconstruct import ReconstructableRepository
from siglip_pipeline.workers.shards import serve_shard
import siglip_pipeline.siglip.similarity as kept

def assets(shard):
    serve_shard(shard)
    repository = ReconstructableRepository.for_module("siglip_pipeline.definitions", "defs")
    job = repository.get_reconstructable_job("rebuild_index").get_definition()
    return sorted(key.to_user_string() for key in job.asset_layer.executable_asset_keys)

found = [assets(shard) for shard in (None, "north", "south/eu-1", None)]
import siglip_pipeline.siglip.similarity as now
print(json.dumps({"assets": found, "kept": kept is now}))
"""


def _run(code: str, environment: dict[str, str]) -> list[Any]:
    """Run Python code in a process; return the documents that it prints, one on each line."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_two_locations_fill_one_database(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    films = {}
    for part, scene in zip(PARTS, demo_scenes(), strict=False):
        (uploads / part).mkdir(parents=True)
        films[f"{part}/film.mp4"] = render_video(
            uploads / part / "film.mp4", [scene], seconds_per_scene=2, fps=10
        )
    with fresh_database(postgres) as url, fresh_database(postgres, "template1") as dagster_url:
        settings = Settings.load(
            home=tmp_path / "home",
            uploads=str(uploads),
            uploads_settle_seconds=0,
            model_name=str(MODEL_FOLDER),
            device="cpu",
            decode_workers=1,
            database_url=url,
            dagster_postgres_url=dagster_url.replace("postgresql://", "postgresql+psycopg2://"),
        )
        locations = [settings.model_copy(update={"part": part}).environment() for part in PARTS]
        assert _run(LOCATIONS, {"LOCATIONS": json.dumps(locations)}) == [
            {
                "set": f"videos/{part}",
                "videos": [f"{part}/film.mp4"],
                "ok": True,
                # By which a worker that serves all parts knows whose run it is.
                "run": [f"{part}/video_frames"],
            }
            for part in PARTS
        ]
        with (
            open_database(DatabaseOptions.from_settings(settings)) as database,
            database.connection() as connection,
        ):
            # Neither location took the other's uploads for deleted ones.
            assert connection.execute(
                "SELECT path, part, missing_since FROM videos"
            ).fetchall() == [(f"{part}/film.mp4", part, None) for part in PARTS]
            assert collect_status(database, StatusOptions.from_settings(settings)).indexed == len(
                films
            )
            service = SearchService(database, SearchOptions.from_settings(settings))
            for video, film in films.items():
                hits = service.by_text(film.timeline[0][2].caption, k=2).hits
                assert hits[0].video == video
        _assert_sets_are_apart(settings)


def _assert_sets_are_apart(settings: Settings) -> None:
    home = str(settings.home / "dagster")
    with process_environment(settings, DAGSTER_HOME=home), dg.DagsterInstance.get() as instance:
        for part in PARTS:
            key = dg.AssetKey([*part.split("/"), "frame_embeddings"])
            video = f"{part}/film.mp4"
            assert instance.get_dynamic_partitions(f"videos/{part}") == [video]
            assert instance.get_materialized_partitions(key) == {video}


@pytest.mark.slow
def test_a_worker_serves_one_part_after_the_other() -> None:
    [answer] = _run(WORKER, {"SIGLIP_MODEL_NAME": str(MODEL_FOLDER)})
    assert answer == {
        "assets": [
            ["similarity_index"],
            ["north/similarity_index"],
            ["south/eu-1/similarity_index"],
            ["similarity_index"],
        ],
        "kept": True,
    }


def test_a_part_lists_and_finds_only_what_lies_below_it(tmp_path: Path) -> None:
    for name in ("a/1.mp4", "ab/2.mp4", "3.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    shard = UploadStore(tmp_path, shard="a", settle_seconds=0)
    assert [upload.path for upload in shard.list()] == ["a/1.mp4"]
    assert shard.get("a/1.mp4").path == "a/1.mp4"
    with pytest.raises(UploadNotFoundError, match="SIGLIP_PART=a"):
        shard.get("ab/2.mp4")
    with pytest.raises(SettingsError, match="SIGLIP_PART"):
        Settings.load(part="../a")


def test_the_page_leads_to_the_assets_of_a_videos_part(database: Database, tmp_path: Path) -> None:
    records = VideoStore(database)
    for video in ("north/a.mp4", "northern.mp4"):
        records.record_failure(video, stage=Stage.FRAMES, reason="not a video")
    settings = Settings.load(
        home=tmp_path,
        uploads=str(tmp_path / "none"),
        database_url=database.url,
        dagster_url="http://dagster",
    )

    def links() -> list[str]:
        with TestClient(create_app(settings, database), base_url="http://127.0.0.1") as client:
            return re.findall(r'href="http://dagster(/assets/[^"]+)"', client.get("/status").text)

    undivided = "/assets/video_frames?view=partitions&amp;partition="
    assert links() == [f"{undivided}north%2Fa.mp4", f"{undivided}northern.mp4"]
    AnnouncedUploads(database).note_shard("north")
    divided = "/assets/north/video_frames?view=partitions&amp;partition="
    assert links() == [f"{divided}north%2Fa.mp4", f"{undivided}northern.mp4"]
    # Whole again: what is worked on as no part has no part.
    AnnouncedUploads(database).note_shard(None)
    assert links() == [f"{undivided}north%2Fa.mp4", f"{undivided}northern.mp4"]


def test_a_set_of_partitions_that_fills_up_is_announced(database: Database, tmp_path: Path) -> None:
    settings = Settings.load(uploads=str(tmp_path), part="a", partition_limit=10)
    assert partition_warning(8, shard="a", limit=10) is None
    assert "9 videos below a/" in str(partition_warning(9, shard="a", limit=10))
    with psycopg.connect(database.url.reveal()) as connection:
        connection.execute(
            "INSERT INTO videos (path) SELECT p || n FROM generate_series(1, 9) n,"
            " unnest(ARRAY['a/', 'b/']) p"
        )
    (warning,) = collect_status(database, StatusOptions.from_settings(settings)).warnings
    assert warning == partition_warning(9, shard="a", limit=10)
    other = StatusOptions.from_settings(settings.model_copy(update={"part": "c"}))
    assert collect_status(database, other).warnings == ()

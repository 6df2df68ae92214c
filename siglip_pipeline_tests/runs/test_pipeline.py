"""The whole way, in this process: two rendered videos in, the right second of the right one out.

Real Postgres, real decoding, the demo model, runs recorded in a real Dagster instance.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from PIL import Image

from siglip_pipeline.cli import main as cli
from siglip_pipeline.defs.assets import similarity_index
from siglip_pipeline.demo.drawing import render_picture
from siglip_pipeline.demo.films import DemoVideo, demo_scenes, render_video
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import UploadNotFoundError
from siglip_pipeline.records import Stage
from siglip_pipeline.runs import in_process
from siglip_pipeline.runs.in_process import materialize_videos
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.services.home import pipeline_environment
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip import model as loader
from siglip_pipeline.siglip.model import get_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages.status import StatusOptions, collect_status
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.web.conftest import serving

SCENES_PER_VIDEO = 10


@dataclass(frozen=True)
class Collection:
    """Two indexed videos, and one file that is not a video."""

    settings: Settings
    films: tuple[DemoVideo, ...]


@pytest.fixture(scope="module")
def collection(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Collection]:
    home = tmp_path_factory.mktemp("home")
    uploads = home / "uploads"
    (uploads / "sub").mkdir(parents=True)
    scenes = demo_scenes()
    films = (
        render_video(uploads / "one.mp4", scenes[:SCENES_PER_VIDEO], seconds_per_scene=2, fps=10),
        render_video(
            uploads / "sub" / "two.mkv",
            scenes[SCENES_PER_VIDEO : 2 * SCENES_PER_VIDEO],
            seconds_per_scene=3,
            fps=15,
        ),
    )
    (uploads / "broken.mp4").write_text("this is no film")
    with fresh_database(postgres) as url, fresh_database(postgres, "template1") as dagster_url:
        settings = collection_settings(
            home,
            url,
            dagster_postgres_url=dagster_url.replace("postgresql://", "postgresql+psycopg2://"),
        )
        with pipeline_environment(settings) as complete:
            videos = ["broken.mp4", "one.mp4", "sub/two.mkv"]
            assert materialize_videos(complete, videos)
            yield Collection(complete, films)


def _name(film: DemoVideo, settings: Settings) -> str:
    return film.path.relative_to(settings.uploads).as_posix()


def test_text_finds_the_right_second_in_18_of_20(collection: Collection) -> None:
    found = []
    with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
        service = SearchService(database, SearchOptions.from_settings(collection.settings))
        for film in collection.films:
            for start, end, scene in film.timeline:
                hit = service.by_text(scene.caption, k=1).hits[0]
                right = hit.video == _name(film, collection.settings)
                found.append(right and start <= hit.time_seconds < end)
    assert len(found) == 2 * SCENES_PER_VIDEO
    assert sum(found) >= 18, found


def test_a_picture_finds_the_scene_that_it_shows(collection: Collection, tmp_path: Path) -> None:
    film = collection.films[1]
    start, end, scene = film.timeline[4]
    picture = tmp_path / "query.png"
    render_picture(scene).save(picture)
    with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
        result = SearchService(database, SearchOptions.from_settings(collection.settings)).by_image(
            picture, k=3
        )
    assert result.hits[0].video == "sub/two.mkv"
    assert start <= result.hits[0].time_seconds < end


def test_a_moment_finds_itself_first_and_loads_no_model(collection: Collection) -> None:
    with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
        without_model = collection.settings.model_copy(update={"device": "cuda:99"})
        result = SearchService(database, SearchOptions.from_settings(without_model)).by_moment(
            "one.mp4", 5.0, k=2
        )
    hit = result.hits[0]
    assert hit.video == "one.mp4"
    assert hit.score == pytest.approx(1.0, abs=1e-3)
    assert hit.start_seconds <= 5.0 < hit.end_seconds


def test_the_file_that_is_no_video_failed_alone(collection: Collection) -> None:
    with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
        status = collect_status(database, StatusOptions.from_settings(collection.settings))
    assert (status.total, status.indexed, status.failed, status.pending) == (3, 2, 1, 0)
    assert [(f.video, f.stage) for f in status.failures] == [("broken.mp4", "video_frames")]
    assert status.failures[0].reason
    # One frame a second: 20 s and 30 s of film.
    assert status.frames == status.vectors == 50
    assert status.index is not None
    assert status.index.rows == 50


def _metadata(event: dg.EventLogEntry | None) -> dict[str, Any]:
    assert event is not None
    assert event.asset_materialization is not None
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def test_dagster_shows_each_partition_as_what_it_is(collection: Collection) -> None:
    with dg.DagsterInstance.get() as instance:
        # One has no frames and no vectors, which is nothing to make.
        videos = {"one.mp4", "sub/two.mkv", "broken.mp4"}
        for name in ("uploads", "video_frames", "frame_embeddings"):
            assert instance.get_materialized_partitions(dg.AssetKey(name)) == videos
        [vectors] = instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("frame_embeddings"), asset_partitions=["one.mp4"]),
            limit=1,
        ).records
        shown = _metadata(vectors.event_log_entry)
        # A number is plotted over time, and would jump from one video to the next.
        assert {name for name, value in shown.items() if type(value) in (int, float)} == {
            "dagster/row_count"
        }
        assert (shown["dagster/row_count"], shown["dagster/table_name"]) == (20, "frames_1")
        event = instance.get_latest_materialization_event(dg.AssetKey("similarity_index"))
        shown = _metadata(event)
        assert shown["frames"] == 50
        assert shown["videos_with_frames_out_of_date"] == 0
        assert shown["videos_with_vectors_out_of_date"] == 0
        # Without a daemon, no automation compares the videos.
        assert instance.get_latest_materialization_event(dg.AssetKey("video_similarity"))


def test_what_is_current_is_not_done_again(collection: Collection) -> None:
    def ingests() -> list[Any]:
        with (
            open_database(DatabaseOptions.from_settings(collection.settings)) as database,
            database.connection() as connection,
        ):
            return connection.execute(
                "SELECT video_id, ingest_id FROM ingests ORDER BY 1"
            ).fetchall()

    before = ingests()
    assert materialize_videos(collection.settings, ["one.mp4"])
    assert ingests() == before


def test_a_run_covers_a_limited_number_of_videos(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "MOST_PER_RUN", 1)
    with dg.DagsterInstance.get() as instance:
        before = instance.get_runs_count()
        assert materialize_videos(
            collection.settings, ["one.mp4", "sub/two.mkv"], assets=[Stage.FRAMES]
        )
        assert instance.get_runs_count() - before == 2


def test_the_image_tower_is_gone_before_the_recall_check(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with the text tower, it took a third of the memory of the whole command."""
    loaded: list[list[str]] = []
    run = in_process._run

    def looking(instance: dg.DagsterInstance, asset_key: dg.AssetKey, *rest: Any) -> bool:
        if asset_key == similarity_index.key:
            loaded.append([model.tower for model in loader._loaded.values()])
        return run(instance, asset_key, *rest)

    monkeypatch.setattr(in_process, "_run", looking)
    get_model(ModelOptions.from_settings(collection.settings), tower="image")
    assert materialize_videos(collection.settings, ["one.mp4"])
    assert loaded == [[]]


def test_a_changed_upload_replaces_its_vectors(collection: Collection) -> None:
    changed = Path(collection.settings.uploads) / "changing.mp4"
    films = [film.path for film in collection.films]
    shutil.copyfile(films[0], changed)
    assert materialize_videos(collection.settings, ["changing.mp4"])
    shutil.copyfile(films[1], changed)
    assert materialize_videos(collection.settings, ["changing.mp4"])
    with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
        vectors = VectorStore(database)
        with database.connection() as connection:
            row = connection.execute("SELECT model_id FROM models").fetchone()
        assert row is not None
        assert len(vectors.vectors(row[0], "changing.mp4")) == 30


def _run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, Any]:
    monkeypatch.setattr("sys.argv", ["siglip-pipeline", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    code = exited.value.code
    return int(code or 0), json.loads(capsys.readouterr().out)


def test_a_replaced_file_is_noticed_without_a_running_dagster(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(collection.settings.uploads) / "replaced.bmp"
    Image.new("RGB", (64, 48), "red").save(file)
    status = file.stat()
    assert materialize_videos(collection.settings, ["replaced.bmp"])
    for option, colour in (("--all-missing", "blue"), ("--stale", "green")):
        Image.new("RGB", (64, 48), colour).save(file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        _, document = _run_cli(monkeypatch, capsys, "status", "--json")
        assert document["out_of_date"]["frames"] == 1
        code, document = _run_cli(monkeypatch, capsys, "materialize", option, "--json")
        assert (code, document["indexed"]) == (0, ["replaced.bmp"])
        code, document = _run_cli(monkeypatch, capsys, "materialize", option, "--json")
        assert (code, document["videos"]) == (0, [])
    file.unlink()
    with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
        VideoStore(database).delete("replaced.bmp")


def test_a_warning_reaches_dagster_and_the_page(collection: Collection) -> None:
    file = Path(collection.settings.uploads) / "joined.mp4"
    file.write_bytes(collection.films[0].path.read_bytes() * 2)
    assert materialize_videos(collection.settings, ["joined.mp4"])
    with dg.DagsterInstance.get() as instance:
        key = dg.AssetCheckKey(dg.AssetKey("video_frames"), "footage_is_whole")
        records = instance.event_log_storage.get_asset_check_execution_history(key, limit=50)
        events = [record.event.dagster_event for record in records if record.event is not None]
        found = [
            event.asset_check_evaluation_data
            for event in events
            if event is not None and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
        ]
        [check] = [evaluation for evaluation in found if evaluation.partition == "joined.mp4"]
        [event] = instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("video_frames"), asset_partitions=["joined.mp4"]),
            limit=1,
        ).records
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    [warning] = _texts(check.metadata["warnings"])
    assert "bytes after the end of the film" in warning
    assert event.asset_materialization is not None
    assert _texts(event.asset_materialization.metadata["warnings"]) == [warning]
    with serving(collection.settings) as served:
        videos = served.client.get("/api/videos").json()["videos"]
        [video] = [video for video in videos if video["video"] == "joined.mp4"]
        assert video["warnings"] == [warning]
        for page in ("/videos", f"/videos/{video['video_id']}", "/status"):
            assert warning in served.client.get(page).text, page
    file.unlink()
    with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
        VideoStore(database).delete("joined.mp4")


def _texts(value: dg.MetadataValue[Any]) -> list[str]:
    assert isinstance(value, dg.JsonMetadataValue)
    assert isinstance(value.data, list)
    return [str(text) for text in value.data]


def test_status_json_is_as_documented(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = _run_cli(monkeypatch, capsys, "status", "--json")
    assert code == 0
    assert set(document) == {
        *("videos", "failures", "refused", "out_of_date", "warnings", "frames", "vectors"),
        *("model", "index", "decoding", "video_warnings", "watches"),
    }
    assert document["warnings"] == []
    assert document["out_of_date"] == {"frames": 0, "vectors": 0}
    assert set(document["videos"]) == {"total", "indexed", "failed", "pending"}
    assert set(document["failures"][0]) == {"video", "stage", "reason"}
    assert set(document["model"]) == {"name", "key", "dim"}
    assert set(document["index"]) == {"kind", "state", "recall_at_10", "recall_queries", "rows"}
    assert document["index"]["kind"] == "moments"
    assert document["index"]["state"] == "ready"


def test_search_json_is_as_documented(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    caption = collection.films[0].timeline[0][2].caption
    code, document = _run_cli(monkeypatch, capsys, "search", caption, "--k", "4", "--json")
    assert code == 0
    assert set(document) == {"query", "model", "hits"}
    assert document["query"] == {"text": caption, "k": 4}
    assert len(document["hits"]) == 4
    for hit in document["hits"]:
        assert set(hit) == {
            *("video", "video_id", "time_seconds", "frame_index", "score"),
            *("probability", "start_seconds", "end_seconds", "media_time_seconds"),
        }
        assert -1 <= hit["score"] <= 1
        assert 0 <= hit["probability"] <= 1
        assert hit["start_seconds"] <= hit["time_seconds"] < hit["end_seconds"]
    scores = [hit["score"] for hit in document["hits"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["search", "  "], "QueryError"),
        (["search", "--like", "one.mp4"], "QueryError"),
        (["search", "--like", "absent.mp4@1"], "QueryError"),
        (["search", "--image", "absent.png"], "QueryError"),
        (["search", "x", "--k", "0"], "QueryError"),
        (["materialize", "absent.mp4"], "UploadNotFoundError"),
    ],
)
def test_errors_are_one_json_document_and_exit_code_2(
    collection: Collection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    kind: str,
) -> None:
    code, document = _run_cli(monkeypatch, capsys, *arguments, "--json")
    assert code == 2
    assert document["error"]["type"] == kind
    assert document["error"]["message"]


def test_ingest_waits_and_reports_what_failed(
    collection: Collection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    shutil.copyfile(collection.films[0].path, tmp_path / "more.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"")
    code, document = _run_cli(monkeypatch, capsys, "ingest", str(tmp_path), "--wait", "--json")
    assert code == 1
    assert document["ingested"] == ["bad.mp4", "more.mp4"]
    assert document["indexed"] == ["more.mp4"]
    assert [failure["video"] for failure in document["failed"]] == ["bad.mp4"]
    assert document["skipped"] == []


def test_a_deleted_upload_is_skipped_and_named_and_the_others_are_made(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uploads = Path(collection.settings.uploads)
    for name in ("gone.mp4", "mended.mp4"):
        (uploads / name).write_text("this is no film")
    materialize_videos(collection.settings, ["gone.mp4", "mended.mp4"])
    (uploads / "gone.mp4").unlink()
    shutil.copyfile(collection.films[0].path, uploads / "mended.mp4")
    code, document = _run_cli(monkeypatch, capsys, "materialize", "--failed", "--json")
    assert code == 1
    assert "gone.mp4" not in document["videos"]
    assert document["indexed"] == ["mended.mp4"]
    (skipped,) = document["skipped"]
    assert skipped["video"] == "gone.mp4"
    assert "no such file" in skipped["reason"]
    # A wrong name is an error before any work begins.
    code, document = _run_cli(
        monkeypatch, capsys, "materialize", "gone.mp4", "mended.mp4", "--json"
    )
    assert code == 2
    assert document["error"]["type"] == "UploadNotFoundError"
    with (
        open_database(DatabaseOptions.from_settings(collection.settings)) as database,
        database.connection() as connection,
    ):
        connection.execute(
            "UPDATE videos SET sampling = 'other' WHERE path IN ('mended.mp4', 'sub/two.mkv')"
        )
    (uploads / "mended.mp4").unlink()
    code, document = _run_cli(monkeypatch, capsys, "materialize", "--stale", "--json")
    assert code == 1
    assert [entry["video"] for entry in document["skipped"]] == ["mended.mp4"]
    assert document["indexed"] == document["videos"] == ["sub/two.mkv"]


def test_an_upload_without_frames_is_skipped_and_left_to_the_sensor(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the assets that were named do not make them: registered, it would never be sampled."""
    uploads = Path(collection.settings.uploads)
    shutil.copyfile(collection.films[0].path, uploads / "later.mp4")
    try:
        code, document = _run_cli(
            monkeypatch,
            capsys,
            "materialize",
            "later.mp4",
            "--assets",
            "frame_embeddings",
            "--json",
        )
        assert code == 1
        assert document["videos"] == document["indexed"] == []
        (skipped,) = document["skipped"]
        assert skipped["video"] == "later.mp4"
        assert "no frames yet" in skipped["reason"]
        # A changed upload has frames, and its change is not announced either.
        materialize_videos(collection.settings, ["later.mp4"], assets=[Stage.SIMILARITY])
        with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
            assert "later.mp4" not in VideoStore(database).states()
    finally:
        (uploads / "later.mp4").unlink()


def test_an_upload_that_is_deleted_before_it_is_registered_fails_alone(
    collection: Collection,
) -> None:
    shutil.copyfile(collection.films[0].path, Path(collection.settings.uploads) / "stays.mp4")
    assert materialize_videos(collection.settings, ["deleted.mp4", "stays.mp4"])
    with open_database(DatabaseOptions.from_settings(collection.settings)) as database:
        states = VideoStore(database).states()
    assert (states["stays.mp4"], states["deleted.mp4"]) == ("indexed", "failed")
    with pytest.raises(UploadNotFoundError, match="deleted"):
        materialize_videos(collection.settings, ["deleted.mp4"])

"""Names of every kind through the whole pipeline, from a folder and from a bucket.

Listing, partition, frames, rows, search, HTTP and page: each file comes out under the name that it
went in with, and no other file's content with it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
import pytest

from siglip_pipeline.cli import main as cli
from siglip_pipeline.definitions import defs
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME, partition_key, path_of_partition
from siglip_pipeline.defs.sensors import new_uploads
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.records import Stage
from siglip_pipeline.search import SearchFilter, SearchOptions, SearchService
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline.stages import status
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.terminal.console import PlainConsole, hits_table, status_table
from siglip_pipeline.uploads.ingest import bring_in
from siglip_pipeline.uploads.names import shown
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline_tests.conftest import fresh_database
from siglip_pipeline_tests.defs.conftest import tick
from siglip_pipeline_tests.hostile.names import (
    GOOD,
    GOOD_IN_BUCKETS,
    REFUSED_BY_BUCKETS,
    REFUSED_BY_FOLDERS,
)
from siglip_pipeline_tests.s3 import s3_environment, s3_server
from siglip_pipeline_tests.web.conftest import Served, sent, serving

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Named:
    """One small film under every name; the last bytes of each copy are its own."""

    settings: Settings
    good: tuple[str, ...]
    contents: dict[str, bytes]
    refused: dict[str, str]
    """Part of the reason, by name."""
    instance: dg.DagsterInstance


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    render_video(path, demo_scenes()[:2], seconds_per_scene=1, fps=5)
    return path.read_bytes()


@pytest.fixture(scope="module", params=["folder", pytest.param("bucket", marks=pytest.mark.long)])
def named(
    request: pytest.FixtureRequest,
    film: bytes,
    postgres: EmbeddedPostgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Named]:
    home = tmp_path_factory.mktemp("names")
    in_folder = request.param == "folder"
    good = GOOD if in_folder else GOOD_IN_BUCKETS
    refused = REFUSED_BY_FOLDERS if in_folder else REFUSED_BY_BUCKETS
    contents = {
        # A box that players skip: the same pictures, another file.
        name: film + (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")
        for number, name in enumerate([*good, *refused])
    }
    with fresh_database(postgres) as url:
        settings = Settings.load(
            home=home,
            uploads=str(home / "uploads"),
            model_name=str(MODEL_FOLDER),
            database_url=url,
            uploads_settle_seconds=0,
            http_requests_per_second=0,
        )
        if in_folder:
            for name, content in contents.items():
                file = Path(settings.uploads) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            with process_environment(settings), indexed(settings) as instance:
                yield Named(settings, good, contents, refused, instance)
            return
        root = "s3://names-of-every-kind"
        with s3_server() as address:
            settings = settings.model_copy(
                update={"uploads": f"{root}/in", "frame_store": f"{root}/frames"}
            )
            with process_environment(settings, **s3_environment(address)):
                filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
                filesystem.mkdir(root)
                for name, content in contents.items():
                    filesystem.call_s3(
                        "put_object", Bucket=root[5:], Key=f"in/{name}", Body=content
                    )
                with indexed(settings) as instance:
                    yield Named(settings, good, contents, refused, instance)


@contextmanager
def indexed(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """What the daemon does: a tick of the sensor, its runs, then the assets that follow."""
    with dg.DagsterInstance.ephemeral() as instance:
        ticked = tick(new_uploads, instance)
        assert isinstance(ticked, dg.SensorResult)
        keys = instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
        everything = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]}
        for run in ticked.run_requests or []:
            materialize(instance, "video_frames", dict(run.tags))
        materialize(instance, "frame_embeddings", everything)
        materialize(instance, "similarity_index", {})
        yield instance


def materialize(instance: dg.DagsterInstance, asset: str, tags: dict[str, Any]) -> None:
    assert execute(instance, asset, tags).success


def execute(
    instance: dg.DagsterInstance, asset: str, tags: dict[str, Any]
) -> dg.ExecuteInProcessResult:
    job = defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(asset)],
        tags=tags,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


@pytest.fixture(scope="module")
def answering(named: Named) -> Iterator[Served]:
    with serving(named.settings) as running:
        yield running


def test_every_file_is_listed_or_refused_with_a_reason(named: Named) -> None:
    ready, refused = UploadStore(named.settings.uploads, settle_seconds=0).survey()
    assert [upload.path for upload in ready] == sorted(named.good)
    reasons = {file.path: file.reason for file in refused}
    assert reasons.keys() == named.refused.keys()
    for name, part in named.refused.items():
        assert part in reasons[name]


def test_every_name_has_a_partition_of_its_own_and_is_green(named: Named) -> None:
    keys = named.instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    assert {path_of_partition(key) for key in keys} == set(named.good)
    assert all(shown(key) == key for key in keys), "a key would deceive its reader"
    for asset in ("uploads", "video_frames", "frame_embeddings"):
        assert named.instance.get_materialized_partitions(dg.AssetKey(asset)) == set(keys)


def test_every_name_has_rows_of_its_own(named: Named) -> None:
    with open_database(DatabaseOptions.from_settings(named.settings)) as database:
        rows = {row.video: row for row in VideoStore(database).list()}
        assert rows.keys() == set(named.good)
        assert {row.state for row in rows.values()} == {"indexed"}
        assert len({row.sha256 for row in rows.values()}) == len(named.good)
        search = SearchService(database, SearchOptions.from_settings(named.settings))
        for name in named.good:
            # As a filter, and as the moment to start from; what looks like a glob is a name too.
            found = search.by_moment(name, 0.0, k=100, filter=SearchFilter(videos=(name,)))
            assert name in {hit.video for hit in found.hits}


def test_every_name_is_answered_over_http(named: Named, answering: Served) -> None:
    client = answering.client
    videos = client.get("/api/videos?limit=500").json()["videos"]
    assert [video["video"] for video in videos] == sorted(named.good)
    for video in videos:
        name, address = video["video"], f"/api/videos/{video['video_id']}"
        assert sent(client.get(f"{address}/stream")) == named.contents[name]
        detail = client.get(address).json()
        thumbnail = client.get(detail["timeline"][0]["thumbnail_url"])
        assert sent(thumbnail).startswith(b"\xff\xd8\xff")
        similar = client.get("/api/similar", params={"like": f"{name}@0.5", "videos": name})
        assert name in {hit["video"] for hit in similar.json()["hits"]}


def test_pages_show_names_and_run_none(named: Named, answering: Served) -> None:
    pages = answering.client.get("/videos").text
    for name in named.good:
        assert escape(shown(name)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in pages
    for hidden in ("<script>alert", "\u202e", "\u200b", "\x1b", "49 ${x}"):
        assert hidden not in pages
    refused = answering.client.get("/status").text
    for name in named.refused if named.settings.uploads.startswith("/") else ():
        assert shown(name) in refused


def test_the_terminal_shows_names_and_obeys_none(
    named: Named, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_database(DatabaseOptions.from_settings(named.settings)) as database:
        report = status.collect_status(database, status.StatusOptions.from_settings(named.settings))
        hits = (
            SearchService(database, SearchOptions.from_settings(named.settings))
            .by_text("[/b] \x1b[2J", k=100)
            .hits
        )
        for video in named.good:
            VideoStore(database).record_failure(video, stage=Stage.FRAMES, reason="[/i] \x1b[2J")
        failed = status.collect_status(database, status.StatusOptions.from_settings(named.settings))
        with database.connection() as connection:
            connection.execute("DELETE FROM failures")
    console = PlainConsole()
    console.width = 4000
    for table in (status_table(report), status_table(failed), hits_table("[/b] \x1b[2J", hits)):
        console.print(table)
    written = capsys.readouterr().out
    assert "\\x1b[2Jcleared" in written
    assert "[bold]x[/bold] [/] :smile:" in written
    for hidden in ("\x1b[2J", "\u202e", "\u200b"):
        assert hidden not in written
    if named.settings.uploads.startswith("/"):
        assert "\\xff.mp4: its name is not valid UTF-8; rename it" in written


@pytest.mark.parametrize("arguments", [["status"], ["search", "x\udcff"], ["search", "[/b]"]])
def test_commands_end_without_a_traceback(
    named: Named,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    for options in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["siglip-pipeline", *arguments, *options])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        assert exited.value.code in (0, None, 2)
        written = capsysbinary.readouterr().out
        if options:
            json.loads(written)


@pytest.mark.parametrize("video", ["\udcff.mp4", "../x.mp4", "./case.mp4", "a//b.mp4", "a\0b", ""])
def test_what_cannot_be_a_name_is_refused_by_the_command_line(
    named: Named,
    video: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["siglip-pipeline", "materialize", "--json", "--", video])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "UploadNotFoundError"
    assert "not a path below UPLOADS" in error["message"]


def test_files_of_every_name_are_brought_in(tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    target.mkdir()
    for name in GOOD:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode())
    bad = source / os.fsdecode(b"\xff.mp4")
    bad.write_bytes(b"x")
    uploads = UploadStore(target, settle_seconds=0)
    outcomes = {i.source: i.outcome for i in bring_in([source, bad], uploads)}
    assert outcomes.pop(str(bad)) == "refused"
    assert set(outcomes.values()) == {"copied"}
    assert {upload.path for upload in uploads.list()} == set(GOOD)
    assert not list(target.rglob(".*"))


STRAYS = ["%FE.mp4", "%00", "", "../up.mp4", "so....mp4", "%41.mp4", "line\nbreak.mp4", "%", " /"]
"""Partitions that a person may add in Dagster's UI, and that no upload can have."""


def test_partitions_that_no_name_can_have_fail_alone_and_go(named: Named) -> None:
    good = partition_key(named.good[0])
    # An instance of its own: its events stay, and the tests above ask the other for all it has.
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(VIDEOS_PARTITIONS_NAME, [*STRAYS[:4], good, *STRAYS[4:]])
        over_all = {RANGE_START_TAG: STRAYS[0], RANGE_END_TAG: STRAYS[-1]}
        for asset in ("video_frames", "frame_embeddings", "watch_hits"):
            result = execute(instance, asset, over_all)
            failure = result.failure_data_for_node(asset)
            assert failure is not None
            assert failure.user_failure_data is not None, failure
            reasons = (failure.user_failure_data.description or "").splitlines()
            assert reasons[0] == "9 of 10 videos failed:"
            assert [reason.partition(": ")[0] for reason in reasons[1:]] == [*map(shown, STRAYS)]
            assert all(reason.endswith("; delete the partition") for reason in reasons[1:])
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {good}
        with Database(named.settings.database_url or "") as database:
            assert VideoStore(database).paths() == set(named.good)
        materialize(instance, "reconciliation", {})
        assert instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME) == [good]

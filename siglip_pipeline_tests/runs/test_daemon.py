"""Under a real webserver and daemon: what people do in the UI, through the calls that it makes.

One `up` serves the module. Its videos are rendered, its model is the demo's.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import psycopg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason

from siglip_pipeline.defs.lost_runs import INSTEAD_OF_TAG
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.errors import SiglipPipelineError
from siglip_pipeline.records import Stage
from siglip_pipeline.runs.dagster_api import FINISHED, DagsterApi
from siglip_pipeline.services.home import pipeline_environment
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.stages.freshness import Wanted, out_of_date
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.database import LOCK_VIDEO, Database, DatabaseOptions, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline_tests.processes import descendants, is_busy
from siglip_pipeline_tests.services.test_up import Up, _up, cli

PUSHED = Path(__file__).parents[2] / "scripts" / "index_pushed_videos"

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


RANGE = {RANGE_START_TAG: "00.mp4", RANGE_END_TAG: "00.mp4"}

FINISHED_RUNS = {"SUCCESS", "FAILURE", "CANCELED"}


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except (OSError, AssertionError, SiglipPipelineError):  # no server, or one without a database
        return None


class Services:
    """A running `up`, its uploads folder and its GraphQL."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.url = f"http://127.0.0.1:{up.settings.dagster_port}"
        self.uploads = Path(up.settings.uploads)
        self._scenes = iter(demo_scenes() * 4)

    def ask(self, query: str, **variables: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=240) as answer:
            document = json.load(answer)
        assert "errors" not in document, document
        return document["data"]

    def render(self, *names: str, folder: Path | None = None) -> None:
        """Films of one scene each, no two alike."""
        for name in names:
            path = (folder or self.uploads) / name
            render_video(path, [next(self._scenes)], seconds_per_scene=1)

    def drop_batch(self, names: Sequence[str], *, bad: Collection[str]) -> None:
        """Films that differ only in content, and files that are not films, all at once."""
        draft = self.uploads.parent / "draft"
        draft.mkdir(exist_ok=True)
        self.render("film.mp4", folder=draft)
        film = (draft / "film.mp4").read_bytes()
        for name in names:
            # What follows a film's last box is content of the file, and of no frame.
            content = b"this is no film" if name in bad else film
            (draft / name).parent.mkdir(exist_ok=True)
            (self.uploads / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(content + name.encode())
        # Else a tick that comes now would find those that were written first, and no others.
        time.sleep(self.up.settings.uploads_settle_seconds)
        for name in names:
            (draft / name).rename(self.uploads / name)

    def partitions(self, asset: str) -> Any:
        """How many partitions of an asset are green, and how many are red."""
        query = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
            ... on AssetNode { partitionStats { numMaterialized numFailed } } } }"""
        return self.ask(query, key={"path": [asset]})["assetNodeOrError"]["partitionStats"]

    def are_materialized(self, asset: str, count: int) -> bool:
        return bool(self.partitions(asset)["numMaterialized"] == count)

    def checked(self, asset: str) -> dict[str, tuple[int, int]]:
        """By check, how many partitions passed it and how many failed it, as the UI counts them."""
        query = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
            ... on AssetNode { assetChecksOrError { ... on AssetChecks { checks { name
            partitionStatuses { ... on AssetCheckDefaultPartitionStatuses {
            succeededPartitions failedPartitions } } } } } } } }"""
        node = self.ask(query, key={"path": [asset]})["assetNodeOrError"]
        return {
            check["name"]: (
                len(check["partitionStatuses"]["succeededPartitions"]),
                len(check["partitionStatuses"]["failedPartitions"]),
            )
            for check in node["assetChecksOrError"]["checks"]
        }

    def runs(self, asset: str, status: str | None = None) -> list[Any]:
        query = """query($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs {
            results { id status jobName assetSelection { path } tags { key value } } } } }"""
        wanted = {} if status is None else {"statuses": [status]}
        results = self.ask(query, filter=wanted)["runsOrError"]["results"]
        return [
            run
            for run in results
            if [key["path"] for key in run["assetSelection"] or []] == [[asset]]
        ]

    def events(self, run_id: str) -> list[str]:
        query = """query($id: ID!) { runOrError(runId: $id) { ... on Run {
            eventConnection { events { ... on MessageEvent { message } } } } } }"""
        events = self.ask(query, id=run_id)["runOrError"]["eventConnection"]["events"]
        return [event["message"] for event in events if event]

    def wait(self, condition: Callable[[], Any], *, seconds: float = 240) -> Any:
        """Wait as long as a run or a video changes its state within these seconds.

        How far things are is asked after them for the first time, not at once: that takes seconds,
        in which a run could begin and end before the first look.
        """
        seen: Any = None
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.up.process.poll() is None, self.up.log.read_text()
            if time.monotonic() > deadline:
                before, seen = seen, self.progress()
                assert seen != before, (self.up.status(), self.up.log.read_text())
                deadline = time.monotonic() + seconds
            time.sleep(0.2)
        return found

    def progress(self) -> Any:
        """The states of all videos and runs; None where a service is away."""
        runs = "{ runsOrError { ... on Runs { results { id status } } } }"
        return _answer(self.states), _answer(lambda: self.ask(runs))

    def is_idle(self) -> bool:
        """Return whether no run is under way, and none is to come of a backfill."""
        query = """{
            runsOrError(filter: {statuses: [QUEUED, NOT_STARTED, STARTING, STARTED, CANCELING]}) {
                ... on Runs { results { id } } }
            partitionBackfillsOrError(status: REQUESTED) {
                ... on PartitionBackfills { results { id } } }
        }"""
        return not any(found["results"] for found in self.ask(query).values())

    def status_of(self, run_id: str) -> str:
        query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
        return str(self.ask(query, id=run_id)["runOrError"]["status"])

    def ask_for_backfill(self, keys: list[str]) -> str:
        """As the UI does it."""
        return DagsterApi(self.url).launch_backfill(["frame_embeddings"], keys)

    def states(self) -> Any:
        return self.up.status()["videos"]

    def settled(self, *, indexed: int, failed: int = 0) -> bool:
        found = self.states()
        return (found["indexed"], found["failed"]) == (indexed, failed)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "uploads").mkdir()
    settings = Settings.load(
        home=folder / "home",
        uploads=str(folder / "uploads"),
        model_name=str(MODEL_FOLDER),
        uploads_settle_seconds=0.2,
        dagster_port=free_port(),
        page_port=free_port(),
        remove_deleted=False,
    )
    with _up(settings, folder / "up.log") as up:
        yield Services(up)


BAD = ("01.mp4", "04.mp4", "17.mp4")
BATCH = [f"{number:02d}.mp4" for number in range(32)]


def test_a_batch_with_bad_files_is_searchable_but_for_those(services: Services) -> None:
    services.drop_batch(BATCH, bad=BAD)
    services.wait(lambda: services.settled(indexed=29, failed=3), seconds=300)
    failures = services.up.status()["failures"]
    assert [failure["video"] for failure in failures] == list(BAD)
    assert all(failure["reason"] for failure in failures)
    # A bad file is an event: its check says so, and nothing downstream waits for it. Dagster is
    # told of a video after the database: its run may still wait while another works ahead.
    of_all = {"vectors_match_frames": (32, 0), "unit_length": (32, 0)}
    services.wait(lambda: services.checked("frame_embeddings") == of_all)
    for asset in ("video_frames", "frame_embeddings"):
        assert services.partitions(asset) == {"numMaterialized": 32, "numFailed": 0}
    assert {run["status"] for run in services.runs("video_frames")} == {"SUCCESS"}
    # Of the jobs that a person would look for, whoever asked for them.
    assert {run["jobName"] for run in services.runs("video_frames")} == {"sample_frames"}
    assert services.checked("video_frames") == {
        "can_be_decoded": (29, 3),
        "frames_match_plan": (32, 0),
        "little_damage": (32, 0),
        "footage_is_whole": (3, 29),  # data follows the last box of these films
    }
    # The automation updated the index, and matched each video with the standing queries.
    services.wait(lambda: services.up.status()["index"]["rows"] == services.up.status()["frames"])
    services.wait(partial(services.are_materialized, "watch_hits", 32))


def test_one_video_is_made_in_seconds_and_shown_everywhere(services: Services) -> None:
    services.render("small.mp4", "small-2.mp4")
    began = time.monotonic()
    done = cli(services.up.settings, "materialize", "small.mp4", "--json")
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["indexed"] == ["small.mp4"]
    print(f"one video took {took:.1f} s")
    # Of runs, and of no backfill, which the daemon looks at every 30 s, for each asset once.
    for asset in ("video_frames", "frame_embeddings"):
        tagged = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in services.runs(asset)]
        asked = [t for t in tagged if t.get(RANGE_START_TAG) == t.get(RANGE_END_TAG) == "small.mp4"]
        own = [t for t in asked if not {"dagster/backfill", "dagster/sensor_name"} & t.keys()]
        assert own, asset
    assert took < 120 or is_busy(), f"one video took {took:.1f} s"  # 18 s at a load of 6
    # The command or the sensor registered it.
    for asset in ("uploads", "video_frames", "frame_embeddings"):
        services.wait(partial(services.are_materialized, asset, 34))
    versions = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
        ... on AssetNode { assetMaterializations(limit: 2) { partition tags { key value } } } } }"""
    events = services.ask(versions, key={"path": ["uploads"]})["assetNodeOrError"]
    for event in events["assetMaterializations"]:
        tags = {tag["key"]: tag["value"] for tag in event["tags"]}
        upload = UploadStore(services.up.settings.uploads).get(event["partition"])
        assert tags["dagster/data_version"] == upload.fingerprint


def test_materialize_all_goes_through_to_the_index_past_bad_files(services: Services) -> None:
    api = DagsterApi(services.url)
    assets = ("video_frames", "frame_embeddings", "similarity_index", "video_similarity")
    launch = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
        __typename ... on LaunchBackfillSuccess { backfillId } } }"""
    chosen = {"assetSelection": [{"path": [asset]} for asset in assets], "allPartitions": True}
    backfill = services.ask(launch, p=chosen)["launchPartitionBackfill"]["backfillId"]
    services.wait(lambda: api.backfill_status(backfill) in FINISHED, seconds=400)
    assert api.backfill_status(backfill) == "COMPLETED_SUCCESS"
    query = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
        ... on PartitionBackfill { assetBackfillData { assetBackfillStatuses {
        ... on AssetPartitionsStatusCounts { assetKey { path } numPartitionsFailed }
        ... on UnpartitionedAssetStatus { assetKey { path } materialized } } } } } }"""
    data = services.ask(query, id=backfill)["partitionBackfillOrError"]["assetBackfillData"]
    found = {
        status["assetKey"]["path"][0]: status.get("materialized", status.get("numPartitionsFailed"))
        for status in data["assetBackfillStatuses"]
    }
    assert found == {
        "video_frames": 0,
        "frame_embeddings": 0,
        "similarity_index": True,
        "video_similarity": True,
    }

    def freshness() -> Any:
        query = """{ assetNodeOrError(assetKey: {path: ["similarity_index"]}) { ... on AssetNode {
            freshnessStatusInfo { freshnessStatus } } } }"""
        return services.ask(query)["assetNodeOrError"]["freshnessStatusInfo"]["freshnessStatus"]

    services.wait(lambda: freshness() == "HEALTHY", seconds=60)


def test_failed_ones_alone_are_made_again(services: Services) -> None:
    services.render("01.mp4")
    # Through the running Dagster, as a shell does it; two stay broken.
    before = {run["id"] for run in services.runs("video_frames")}
    done = cli(services.up.settings, "materialize", "--failed", "--wait", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert document["videos"] == list(BAD)
    assert document["indexed"] == ["01.mp4"]
    assert [failure["video"] for failure in document["failed"]] == ["04.mp4", "17.mp4"]
    assert {run["id"] for run in services.runs("video_frames")} > before
    # Of the good file its check is good. 30 films, two that are none, and the two small ones.
    assert services.checked("video_frames")["can_be_decoded"] == (32, 2)
    assert services.checked("frame_embeddings")["vectors_match_frames"] == (34, 0)
    missing = cli(services.up.settings, "materialize", "absent.mp4", "--json")
    assert missing.returncode == 2


def test_the_job_tries_again_what_failed_and_nothing_else(services: Services) -> None:
    """Two clicks: the link beside a failed check, and *Launch Run*."""
    services.wait(lambda: not services.runs("video_frames", "STARTED"))
    before = {run["id"] for run in services.runs("video_frames")}
    DagsterApi(services.url).launch_run("retry_failed")

    def tried() -> list[str]:
        return [
            tag["value"]
            for run in services.runs("video_frames", "SUCCESS")
            for tag in run["tags"]
            if run["id"] not in before and tag["key"] == RANGE_START_TAG
        ]

    services.wait(lambda: sorted(tried()) == ["04.mp4", "17.mp4"])
    assert [f["video"] for f in services.up.status()["failures"]] == ["04.mp4", "17.mp4"]


@contextmanager
def _active_model(services: Services) -> Iterator[tuple[Database, int]]:
    with open_database(DatabaseOptions.from_settings(services.up.settings)) as database:
        model = ModelStore(database).active()
        assert model is not None
        yield database, model.model_id


def _backfill_of(run: Any) -> str | None:
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    return tags.get("dagster/backfill")


def test_a_fragmented_backfill_loads_the_model_once(services: Services) -> None:
    keys = ["00.mp4", "02.mp4", "05.mp4"]
    with _active_model(services) as (database, model_id):
        VectorStore(database).mark_outdated(model_id, keys)
    api = DagsterApi(services.url)
    backfill = services.ask_for_backfill(keys)
    services.wait(lambda: api.backfill_status(backfill) in FINISHED)
    assert api.backfill_status(backfill) == "COMPLETED_SUCCESS"
    # Automation may have had others made, such as those that were tried again.
    runs = [run for run in services.runs("frame_embeddings") if _backfill_of(run) == backfill]
    assert len(runs) == len(keys)
    loads = [
        run["id"]
        for run in runs
        if any("is loaded on" in message for message in services.events(run["id"]))
    ]
    # The first run may have looked before the last ones were queued.
    assert 1 <= len(loads) <= 2


def test_cancelling_a_run_keeps_what_is_done_and_frees_the_slot(services: Services) -> None:
    settings = services.up.settings
    wanted = Wanted.from_settings(settings)
    done, held = "02.mp4", "03.mp4"
    with _active_model(services) as (database, model_id):
        VectorStore(database).mark_outdated(model_id, [done, held])
        # The run waits in its middle, for a lock that this test has.
        with psycopg.connect(database.url.reveal()) as connection:
            connection.execute(
                "SELECT pg_advisory_lock(%s, video_id) FROM videos WHERE path = %s",
                [LOCK_VIDEO, held],
            )
            services.ask_for_backfill([done, held])
            services.wait(lambda: out_of_date(database, wanted).vectors == (held,))
            (run,) = services.runs("frame_embeddings", "STARTED")
            began = time.monotonic()
            services.ask(
                "mutation($id: String!) { terminateRun(runId: $id) { __typename } }",
                id=run["id"],
            )
            services.wait(lambda: services.status_of(run["id"]) == "CANCELED", seconds=60)
            assert time.monotonic() - began < 15 or is_busy()
        assert out_of_date(database, wanted).vectors == (held,)
    # The slot of the pool is free again: the next run gets it.
    again = cli(settings, "materialize", "--stale", "--assets", "frame_embeddings", "--json")
    assert again.returncode == 0, again.stderr
    document = json.loads(again.stdout)
    assert document["videos"] == document["indexed"] == [held]


def test_a_killed_daemon_is_started_again_and_goes_on(services: Services) -> None:
    def daemons() -> list[psutil.Process]:
        return descendants("dagster._daemon", of=services.up.process.pid)

    (daemon,) = daemons()
    services.render("late-1.mp4", "late-2.mp4")
    listing = "{ runsOrError { ... on Runs { results { id } } } }"
    before = len(services.ask(listing)["runsOrError"]["results"])
    services.wait(lambda: len(services.ask(listing)["runsOrError"]["results"]) > before)
    daemon.kill()
    services.wait(lambda: [p for p in daemons() if p.pid != daemon.pid])
    services.render("late-3.mp4")
    services.wait(lambda: services.states()["pending"] == 0, seconds=300)
    states = json.loads(cli(services.up.settings, "status", "--json").stdout)
    assert not [f for f in states["failures"] if f["video"].startswith("late")]
    hits = cli(services.up.settings, "search", "--like", "late-3.mp4@0", "--k", "1", "--json")
    assert json.loads(hits.stdout)["hits"][0]["video"] == "late-3.mp4"


def test_queued_runs_outlive_the_code_server(services: Services) -> None:
    """It is away for some twelve seconds, as long as it takes to come back."""
    api = DagsterApi(services.url)
    servers = descendants("siglip_pipeline.services.code_server", of=services.up.process.pid)
    runs = [api.launch_run("rebuild_index") for _ in range(8)]
    for server in servers:
        server.kill()
    services.wait(lambda: all(api.run_state(run).has_ended for run in runs))
    for run in runs:
        messages = services.events(run)
        assert not [text for text in messages if "dropping it from the queue" in text], messages
    # What was in the middle of its work was lost, and is retried; what waited was not.
    assert sum(api.run_state(run).status == "SUCCESS" for run in runs) >= 4


def test_a_run_that_did_not_start_in_time_is_started_again(services: Services) -> None:
    """Of a backfill that has ended: Dagster retries none, and leaves it as to be retried."""
    api = DagsterApi(services.url)
    backfill = api.launch_backfill(["frame_embeddings"], ["00.mp4"])
    services.wait(lambda: api.backfill_status(backfill) in FINISHED)
    tags = {"dagster/backfill": backfill}
    lost = api.launch_run("embed_frames", asset="frame_embeddings", tags={**tags, **RANGE})
    with (
        pipeline_environment(services.up.settings) as settings,
        dg.DagsterInstance.get() as instance,
    ):
        run = instance.get_run_by_id(lost)
        assert run is not None
        services.wait(lambda: api.run_state(lost).has_ended)
        reason = JobFailureData(error=None, failure_reason=RunFailureReason.START_TIMEOUT)
        instance.report_run_failed(run, "took too long to start", reason)
        assert api.run_state(lost).will_retry
        url = (settings.dagster_postgres_url or SecretUrl("")).reveal().replace("+psycopg2", "")
        with psycopg.connect(url) as connection:
            connection.execute(
                "UPDATE runs SET update_timestamp = update_timestamp - interval '5 min'"
                " WHERE run_id = %s",
                [lost],
            )

        def made() -> bool:
            wanted = dg.RunsFilter(tags={INSTEAD_OF_TAG: lost})
            return any(run.is_success for run in instance.get_runs(wanted))

        services.wait(made)


def test_reconciliation_agrees_while_files_arrive(services: Services) -> None:
    """Twenty runs of it, begun at different moments of what happens to new files."""
    launch = """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {
        __typename ... on LaunchRunSuccess { run { runId } } } }"""
    where = {
        "repositoryName": "__repository__",
        "repositoryLocationName": "siglip_pipeline",
        "jobName": "reconcile_collection",
    }
    before = len(services.runs("video_frames"))
    looks = []
    for number in range(20):
        services.render(f"arrives-{number}.mp4")
        time.sleep(number % 5)
        launched = services.ask(launch, p={"selector": where, "runConfigData": {}})["launchRun"]
        looks.append(launched["run"]["runId"])
        services.wait(lambda: services.status_of(looks[-1]) in FINISHED_RUNS)
    assert {services.status_of(run) for run in looks} == {"SUCCESS"}
    query = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
        assetMaterializations(limit: 20) { runId metadataEntries { label
        ... on IntMetadataEntry { intValue } } } } } }"""
    made = services.ask(query, key={"path": ["reconciliation"]})["assetNodeOrError"]
    found = {
        event["runId"]: entry["intValue"]
        for event in made["assetMaterializations"]
        for entry in event["metadataEntries"]
        if entry["label"] == "differences"
    }
    assert found == dict.fromkeys(looks, 0)
    services.wait(lambda: services.states()["pending"] == 0, seconds=300)
    # No file was taken up twice.
    asked = [
        {tag["key"]: tag["value"] for tag in run["tags"]}
        for run in services.runs("video_frames")[: -before or None]
    ]
    keys = [tags["dagster/asset_partition_range_start"] for tags in asked]
    assert len(keys) == len(set(keys))


def test_the_videos_of_one_upload_become_one_backfill(services: Services) -> None:
    before = {run["id"] for run in services.runs("frame_embeddings")}

    def runs() -> list[Any]:
        return [run for run in services.runs("frame_embeddings") if run["id"] not in before]

    names = [f"many/{number:02d}.mp4" for number in range(80)]
    services.drop_batch(names, bad=())
    (run, *_) = services.wait(runs, seconds=300)
    backfill = _backfill_of(run)
    assert backfill is not None
    api = DagsterApi(services.url)
    services.wait(lambda: api.backfill_status(backfill) in FINISHED)
    # In runs of 64, as few as there can be.
    assert [_backfill_of(run) for run in runs()] == [backfill] * 2
    assert services.states()["pending"] == 0


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_push_of_videos_is_indexed(services: Services, tmp_path: Path) -> None:
    """What .github/workflows/materialize.yml does."""
    environment = child_environment(services.up.settings) | {
        "DAGSTER_URL": services.url,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    def commit() -> str:
        run("git", "add", "--all")
        identity = ("-c", "user.name=ci", "-c", "user.email=ci@example.org")
        assert run("git", *identity, "commit", "--quiet", "--message", "videos").returncode == 0
        return run("git", "rev-parse", "HEAD").stdout.strip()

    run("git", "init", "--quiet")
    (tmp_path / "videos" / "a folder").mkdir(parents=True)
    (tmp_path / "videos" / "kept.txt").write_text("no video")
    before = commit()
    assert run(str(PUSHED), before).returncode == 0
    services.render("first.mp4", "a folder/second.mp4", folder=tmp_path / "videos")
    (tmp_path / "videos" / "first.srt").write_text("travels with its video")
    commit()
    pushed = run(str(PUSHED), before)
    assert pushed.returncode == 0, pushed.stderr
    with open_database(DatabaseOptions.from_settings(services.up.settings)) as database:
        states = VideoStore(database).states()
    assert {states["first.mp4"], states["a folder/second.mp4"]} == {"indexed"}
    (tmp_path / "videos" / "broken.mp4").write_text("no film")
    commit()
    assert run(str(PUSHED), "HEAD~1").returncode != 0
    (tmp_path / "videos" / "kept.txt").write_text("notes alone")
    commit()
    pushed = run(str(PUSHED), "HEAD~1")
    assert pushed.returncode == 0, pushed.stderr


@pytest.mark.parametrize("flag", ["--stale", "--failed"])
def test_a_deleted_upload_does_not_stop_the_others(services: Services, flag: str) -> None:
    """It is named and skipped, and the services make the others."""
    stays, goes = f"stays{flag}.mp4", f"goes{flag}.mp4"
    services.render(stays, goes)
    assert cli(services.up.settings, "materialize", stays, goes, "--json").returncode == 0
    services.wait(services.is_idle)  # a run for the uploads would make again what is marked below
    with _active_model(services) as (database, model_id):
        if flag == "--stale":
            VectorStore(database).mark_outdated(model_id, [stays, goes])
        else:
            for video in (stays, goes):
                VideoStore(database).record_failure(video, stage=Stage.FRAMES, reason="a test")
    (services.uploads / goes).unlink()
    before = {run["id"] for run in services.runs("video_frames")}
    done = cli(services.up.settings, "materialize", flag, "--json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert [skipped["video"] for skipped in document["skipped"]] == [goes]
    assert stays in document["indexed"]
    assert goes not in document["videos"]
    assert {run["id"] for run in services.runs("video_frames")} > before  # by the services
    with _active_model(services) as (database, _):
        assert VideoStore(database).states()[stays] == "indexed"
        assert VideoStore(database).states()[goes] != "indexed"

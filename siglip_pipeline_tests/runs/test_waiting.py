"""What `status` and `ingest --wait` say of runs that failed as a whole, without an `up`."""

import html
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from siglip_pipeline.cli import indexing
from siglip_pipeline.errors import LaunchError, RunFailedError
from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.runs import waiting
from siglip_pipeline.runs.dagster_api import DagsterApi, FailedRun, RunState
from siglip_pipeline.runs.remote import materialize_remotely
from siglip_pipeline.runs.waiting import Standstill, check_runs, take_up_again, why_videos_wait
from siglip_pipeline.services.state import write_state
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline_tests.conftest import collection_settings
from siglip_pipeline_tests.web.conftest import serving

QUIET = Standstill(lambda _: None)
VIDEOS = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


class _Dagster:
    """A Dagster with some failed runs."""

    def __init__(self, *runs: FailedRun, stopped: Sequence[str] = ()) -> None:
        self.runs, self.stopped = runs, [*stopped]

    def stopped_sensors(self) -> list[str]:
        return self.stopped

    def failed_runs(self, *, since: float = 0.0) -> Sequence[FailedRun]:
        return self.runs

    def partition_keys(self, asset: str) -> list[str]:
        return VIDEOS

    def failure(self, run_id: str, what: str) -> str:
        return f"run {run_id} failed"

    def silent_daemon(self, *, seconds: float) -> None:
        pass

    def waits_for_worker(self, *, seconds: float) -> None:
        pass

    def waits_in_queue(self, *, seconds: float) -> None:
        pass


def failed(asset: str, *ends: str, was_lost: bool = False) -> FailedRun:
    return FailedRun(
        run_id=f"{asset} {'-'.join(ends)}",
        job="made",
        assets=(asset,),
        ends=(ends[0], ends[-1]) if ends else None,
        was_lost=was_lost,
    )


@pytest.fixture
def settings(tmp_path: Path, database: Database) -> Settings:
    """`a`, `b` and `c` are pending, `d` has frames."""
    uploads = [Upload(path=video, size_bytes=1) for video in VIDEOS]
    AnnouncedUploads(database).register(uploads)
    with database.connection() as connection:
        connection.execute(
            "UPDATE videos SET source_sha256 = 'x', sampling = 'fps:1' WHERE path = 'd.mp4'"
        )
    return collection_settings(tmp_path, database.url.reveal())


def dagster_is(
    monkeypatch: pytest.MonkeyPatch, *runs: FailedRun, stopped: Sequence[str] = ()
) -> None:
    found: Any = _Dagster(*runs, stopped=stopped)
    monkeypatch.setattr(waiting, "_dagster", lambda *_: found)


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (failed("video_frames", "b.mp4", "d.mp4"), "2 of the videos"),
        (failed("video_frames", "d.mp4"), None),
        (failed("frame_embeddings", "a.mp4", "d.mp4"), "1 of the videos"),
        (failed("frame_embeddings", "a.mp4", "c.mp4"), None),
        (failed("similarity_index"), None),
        (failed("reconciliation"), None),
        (failed("video_frames"), None),
        (failed("video_frames", "a.mp4", was_lost=True), "1 of the videos"),
    ],
)
def test_status_names_the_failed_run_that_left_videos_undone(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    run: FailedRun,
    told: str | None,
) -> None:
    dagster_is(monkeypatch, run)
    why = why_videos_wait(database, settings)
    assert len(why) == (told is not None)
    assert told is None or why[0].startswith(f"run {run.run_id} failed; {told}")


def test_a_sensor_that_is_off_is_told_and_ends_waiting(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upgrade in docs/operations.md switches them off, and on again."""
    dagster_is(monkeypatch, stopped=["automation", "new_uploads", "watch_messages"])
    [why] = why_videos_wait(database, settings)
    assert why.startswith("switched off in Dagster: automation and new_uploads. Switch it on")
    with pytest.raises(RunFailedError, match="switched off in Dagster"):
        check_runs(database, settings, ["a.mp4"], since=0, standstill=QUIET)
    dagster_is(monkeypatch, stopped=["watch_messages"])
    assert why_videos_wait(database, settings) == ()
    check_runs(database, settings, ["a.mp4"], since=0, standstill=QUIET)


def test_status_says_nothing_of_runs_where_none_can_be_asked(
    settings: Settings, database: Database
) -> None:
    assert why_videos_wait(database, settings) == ()
    _services(settings)  # nothing listens there
    assert why_videos_wait(database, settings) == ()


def test_the_service_says_what_the_command_does(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dagster_is(monkeypatch, failed("video_frames", "b.mp4"), stopped=["new_uploads"])
    why = why_videos_wait(database, settings)
    assert len(why) == 2
    with serving(settings) as served:
        assert served.client.get("/api/status").json()["warnings"][-2:] == [*why]
        page = html.unescape(served.client.get("/status").text)
    assert all(reason in page for reason in why)


def test_the_service_does_not_wait_for_a_dagster_that_does_not_answer(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip_pipeline.web.services._DAGSTER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, serving(settings) as served:
        _services(settings, port=silent.getsockname()[1])
        began = time.monotonic()
        assert served.client.get("/status").status_code == 200
        assert time.monotonic() - began < 4


def started(*steps: tuple[str, str, float | None]) -> dict[str, Any]:
    """A run of some assets, 60 s after its start, with the steps that have begun."""
    return {
        "runId": "r",
        "jobName": "made",
        "startTime": time.time() - 60,
        "assetSelection": [{"path": [name]} for name in ("video_frames", "frame_embeddings")],
        "stepStats": [
            {"stepKey": key, "status": status, "endTime": ended and time.time() + ended}
            for key, status, ended in steps
        ],
    }


class _Webserver:
    """Answers of a Dagster with one run that was given to Celery, or that was not."""

    def __init__(self, *steps: tuple[str, str, float | None], queue: str | None) -> None:
        self.started = [started(*steps)]
        self.queued: list[dict[str, Any]] = []
        self.silent_seconds: float | None = 30.0
        self.pages = [["another event"] * 3, [] if queue is None else [_submitted(queue)]]

    def answer(self, api: DagsterApi, query: str, variables: Any) -> Any:
        if "daemonHealth" in query:
            last = self.silent_seconds and time.time() - self.silent_seconds
            statuses = [{"lastHeartbeatTime": None}, {"lastHeartbeatTime": last}]
            return {"instance": {"daemonHealth": {"allDaemonStatuses": statuses}}}
        if "queued" in query:
            queued = [{**run, "creationTime": time.time() - 90} for run in self.queued]
            begun = {"results": self.started}
            return {"queued": {"results": queued}, "begun": begun}
        if "eventConnection" in query:
            page = int(variables["after"] or 0)
            events = [{"message": message} for message in self.pages[page]]
            more = {"cursor": str(page + 1), "hasMore": page + 1 < len(self.pages)}
            return {
                "runOrError": {"__typename": "Run", "eventConnection": more | {"events": events}}
            }
        return {"runsOrError": {"results": self.started if "STARTED" in query else []}}


def _state(status: str) -> RunState:
    return RunState(run_id="r", status=status, will_retry=False, retried_as=None)


def _submitted(queue: str) -> str:
    return f'Submitting celery task for step "video_frames" to queue "{queue}".'


@pytest.fixture
def webserver(monkeypatch: pytest.MonkeyPatch) -> Callable[[_Webserver], DagsterApi]:
    """Have every DagsterApi ask one of these."""

    def ask(server: _Webserver) -> DagsterApi:
        monkeypatch.setattr(DagsterApi, "_find_repository", lambda *_: None)
        monkeypatch.setattr(DagsterApi, "_ask", lambda *asked: server.answer(*asked))
        monkeypatch.setattr(DagsterApi, "stopped_sensors", lambda _: [])
        return DagsterApi("http://127.0.0.1:1")

    monkeypatch.setattr(waiting, "_FIRST_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.0)
    return ask


@pytest.mark.parametrize(
    ("steps", "queue", "is_told"),
    [
        ([], "dagster", True),
        ([], None, False),
        ([("video_frames", "IN_PROGRESS", None)], "dagster", False),
        ([("video_frames", "SUCCESS", -30.0)], "siglip", True),
        ([("video_frames", "SUCCESS", -5.0)], "siglip", False),
    ],
)
def test_a_run_that_waits_for_a_worker_is_told_once(
    settings: Settings,
    database: Database,
    webserver: Callable[[_Webserver], DagsterApi],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: list[tuple[str, str, float | None]],
    queue: str | None,
    is_told: bool,
) -> None:
    """Without a worker, `ingest --wait` and `materialize` waited without a word."""
    api = webserver(_Webserver(*steps, queue=queue))
    looks = 0

    def settled(*_: object) -> bool:
        nonlocal looks
        looks += 1
        return looks > 4

    monkeypatch.setattr(indexing, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(indexing, "_settled", settled)
    _services(settings)
    indexing._await_settled(database, settings, ["a.mp4"], before={})
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("waits for a worker") == is_told
    assert not is_told or f"`siglip-pipeline worker --queue {queue}` starts one" in told
    states = iter(("STARTED", "STARTED", "SUCCESS"))
    monkeypatch.setattr(DagsterApi, "run_state", lambda *_: _state(next(states)))
    monkeypatch.setattr(DagsterApi, "launch_run", lambda *_: "r")
    heard: list[str] = []
    materialize_remotely(
        api, settings, [], assets=[Stage.INDEX], force=False, standstill=Standstill(heard.append)
    )
    assert [" ".join(said.split()) for said in heard] == ([told] if is_told else [])
    why = why_videos_wait(database, settings)
    assert [*why] == heard


@pytest.mark.parametrize(
    ("silent_seconds", "said"), [(30, None), (200, " for 3 min 20 s: "), (None, " life: ")]
)
def test_a_daemon_that_is_silent_is_told(
    settings: Settings,
    database: Database,
    webserver: Callable[[_Webserver], DagsterApi],
    silent_seconds: float | None,
    said: str | None,
) -> None:
    """Without one, or with one that hangs, no run starts."""
    server = _Webserver(queue=None)
    server.silent_seconds = silent_seconds
    webserver(server)
    _services(settings)
    why = why_videos_wait(database, settings)
    assert len(why) == (said is not None)
    assert said is None or ("has given no sign of life" in why[0] and said in why[0])


@pytest.mark.parametrize(
    ("begun", "queue_seconds", "is_told"),
    [(False, 60.0, True), (True, 60.0, False), (False, 120.0, False)],
)
def test_a_run_that_waits_in_the_queue_of_a_dagster_at_rest_is_told(
    settings: Settings,
    database: Database,
    webserver: Callable[[_Webserver], DagsterApi],
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,
    queue_seconds: float,
    is_told: bool,
) -> None:
    """For example after the limit of the pool `gpu` was set to 0, to pause it."""
    server = _Webserver(queue=None)
    server.queued, server.started = server.started, [started()] if begun else []
    webserver(server)
    _services(settings)
    monkeypatch.setattr(waiting, "_QUEUE_SECONDS", queue_seconds)
    why = why_videos_wait(database, settings)
    assert len(why) == is_told
    assert not is_told or "has waited in Dagster's queue for 1 min 30 s, and none" in why[0]


def _error(message: str) -> dict[str, Any]:
    return {"message": f"siglip_pipeline.errors.ModelError: {message}", "cause": None}


_ENGINE = {"__typename": "EngineEvent", "message": "x", "error": _error("the job is unknown")}
_STEP = {"__typename": "ExecutionStepFailureEvent", "error": _error("no model")}
_END = {"__typename": "RunFailureEvent", "message": "Exceeded maximum runtime", "error": None}


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([_ENGINE, _STEP, _END], "no model"),
        ([_ENGINE, _END], "the job is unknown"),
        ([_END | {"error": _error("the broker is away")}], "the broker is away"),
        ([_ENGINE | {"error": None}, _END], "Exceeded maximum runtime"),
    ],
)
def test_a_run_of_which_no_step_failed_has_a_reason(
    monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]], reason: str
) -> None:
    monkeypatch.setattr(DagsterApi, "_find_repository", lambda *_: None)
    monkeypatch.setattr(DagsterApi, "_events", lambda *_: iter(events))
    told = DagsterApi("http://127.0.0.1:1").failure("r", "video_frames")
    assert told == f"a run of video_frames failed: {reason} (http://127.0.0.1:1/runs/r)"


@pytest.mark.timeout(60)
def test_waiting_ends_with_a_run_that_failed_over_its_videos(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _services(settings)
    lost = failed("video_frames", "a.mp4", was_lost=True)
    dagster_is(monkeypatch, lost, failed("video_frames", "b.mp4", "c.mp4"))
    check_runs(database, settings, ["a.mp4", "d.mp4"], since=0, standstill=QUIET)
    with pytest.raises(
        RunFailedError, match=r"run video_frames b\.mp4-c\.mp4 failed; 1 of the videos"
    ):
        indexing._await_settled(database, settings, ["a.mp4", "c.mp4"], before={})


def test_what_earlier_runs_left_undone_is_announced_again(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dagster_is(monkeypatch, failed("video_frames", "a.mp4"), failed("video_frames", "c.mp4"))
    take_up_again(database, settings, ["b.mp4", "c.mp4"])
    announced = AnnouncedUploads(database).listed_fingerprints()
    assert [video for video in VIDEOS if announced[video] == ""] == ["c.mp4"]


def test_waiting_ends_where_the_services_have_ended(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_RESTART_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(LaunchError, match="have ended: start `siglip-pipeline up` again"):
        indexing._await_settled(database, settings, ["a.mp4"], before={})
    assert time.monotonic() - began < 60


def _services(settings: Settings, *, port: int = 1) -> None:
    settings.home.mkdir(exist_ok=True)
    urls = {"dagster_url": f"http://127.0.0.1:{port}", "page_url": "http://127.0.0.1:2"}
    write_state(settings.home, **urls, children=[], sockets=settings.home)

"""Standing queries from end to end: added by command, matched by Dagster's runs, shown and sent."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from siglip_pipeline.cli import main as cli
from siglip_pipeline.demo.films import DemoVideo, demo_scenes, render_video
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.runs.in_process import materialize_videos
from siglip_pipeline.services.home import pipeline_environment
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.stages.receiver import Receiver, receiving
from siglip_pipeline_tests.web.conftest import serving

SECONDS = 3


@dataclass(frozen=True)
class Watched:
    """A film that was matched with two watches as it was embedded."""

    settings: Settings
    film: DemoVideo
    receiver: Receiver

    def command(self, *arguments: str, stdin: str = "") -> tuple[int, str]:
        """The exit code of a command, and what it printed on stdout."""
        out, before = io.StringIO(), (sys.argv, sys.stdin, sys.stdout)
        sys.argv, sys.stdin, sys.stdout = ["siglip-pipeline", *arguments], io.StringIO(stdin), out
        try:
            cli.main()
        except SystemExit as exited:
            return int(exited.code or 0), out.getvalue()
        finally:
            sys.argv, sys.stdin, sys.stdout = before
        raise AssertionError("it exits")

    def document(self, *arguments: str, stdin: str = "") -> Any:
        code, printed = self.command(*arguments, "--json", stdin=stdin)
        assert code == 0, printed
        return json.loads(printed)

    def scene(self) -> tuple[float, float, str]:
        start, end, scene = self.film.timeline[2]
        return start, end, scene.caption


@pytest.fixture(scope="module")
def watched(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("watched")
    uploads = home / "uploads"
    film = render_video(
        uploads / "gate/one.mp4", demo_scenes()[:6], seconds_per_scene=SECONDS, fps=10
    )
    with (
        fresh_database(postgres) as url,
        fresh_database(postgres, "template1") as dagster_url,
        receiving() as receiver,
    ):
        settings = collection_settings(
            home,
            url,
            dagster_postgres_url=dagster_url.replace("postgresql://", "postgresql+psycopg2://"),
        )
        with pipeline_environment(settings) as complete:
            tested = Watched(complete, film, receiver)
            _, _, caption = tested.scene()
            add = ("watch", "add", "gate", caption, "--min-probability", "0.3")
            added = tested.document(*add, "--webhook", receiver.url, "--video", "gate/**")
            assert added["webhook"] == receiver.url.split("/hooks")[0]
            elsewhere = ("watch", "add", "yard", caption, "--min-probability", "0")
            tested.document(*elsewhere, "--video", "yard/**")
            receiver.answers = [500]
            assert materialize_videos(complete, ["gate/one.mp4"])
            yield tested


def test_a_new_video_is_matched_and_the_hit_listed(watched: Watched) -> None:
    start, end, _ = watched.scene()
    [hit] = watched.document("watch", "hits", "gate")["hits"]
    assert (hit["video"], hit["watch"]) == ("gate/one.mp4", "gate")
    assert start <= hit["time_seconds"] < end
    assert hit["probability"] >= 0.3
    assert watched.document("watch", "hits", "yard") == {"hits": []}
    code, printed = watched.command("watch", "hits", "gate")
    assert code == 0
    assert "gate/one.mp4" in printed


def test_a_message_that_failed_is_seen_and_sent_again(watched: Watched) -> None:
    """The receiver answered the first one with an error."""
    [hit] = watched.document("watch", "hits", "gate")["hits"]
    assert hit["delivery"] == "late"
    assert "HTTP Error 500" in hit["failure"]
    assert watched.document("status")["watches"] == {
        "watches": 2,
        "hits": 1,
        "late": 1,
        "failed": 0,
    }
    _, printed = watched.command("status")
    assert "2 with 1 hit; 1 not sent so far" in " ".join(printed.split())
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("watch_hits"))
        assert event is not None
        materialized = event.asset_materialization
        assert materialized is not None
        assert materialized.partition == "gate/one.mp4"
        assert materialized.metadata["new_hits"].value == 1
        [check] = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey("watch_hits"), "hits_are_sent"), limit=1
        )
        assert check.event is not None
        evaluation = check.event.asset_check_evaluation
        assert evaluation is not None
        assert not evaluation.passed
        assert evaluation.metadata["late"].value == 1
    with Database(watched.settings.database_url or "") as database, database.connection() as c:
        c.execute("UPDATE watch_hits SET next_attempt_at = now() WHERE sent_at IS NULL")
    from siglip_pipeline.defs.resources import DatabaseResource
    from siglip_pipeline.defs.watch_hits import watch_messages

    told = watch_messages(dg.build_sensor_context(resources={"database": DatabaseResource()}))
    assert isinstance(told, dg.SkipReason)
    assert told.skip_message == "1 message sent, 0 failed"
    assert [m["id"] for m in watched.receiver.posted] == [hit["id"], hit["id"]]
    assert watched.document("watch", "hits", "gate")["hits"][0]["delivery"] == "sent"


def test_embedding_again_sends_nothing_again(watched: Watched) -> None:
    before = len(watched.receiver.posted)
    assert materialize_videos(watched.settings, ["gate/one.mp4"], force=True)
    assert len(watched.document("watch", "hits", "gate")["hits"]) == 1
    assert len(watched.receiver.posted) == before


def test_no_output_shows_the_secret(watched: Watched) -> None:
    for arguments in (("watch", "list"), ("watch", "hits", "gate"), ("status",)):
        for form in ((), ("--json",)):
            code, printed = watched.command(*arguments, *form)
            assert code == 0
            assert "S3CRET" not in printed
    log = (watched.settings.home / "logs").rglob("*")
    assert not any(b"S3CRET" in file.read_bytes() for file in log if file.is_file())


def test_the_threshold_is_set_by_answers(watched: Watched) -> None:
    start, end, _ = watched.scene()
    asked = watched.document("watch", "calibrate", "gate")
    moments = asked["moments"]
    assert asked["watch"]["min_probability"] == 0.3
    assert moments == sorted(moments, key=lambda m: -m["probability"])
    fits = [start <= m["time_seconds"] < end for m in moments]
    assert fits[0]
    lines = "".join(
        json.dumps({**m, "fits": fit}) + "\n" for m, fit in zip(moments, fits, strict=True)
    )
    found = watched.document("watch", "calibrate", "gate", "--answers", "-", stdin=lines)
    assert (found["judged"], found["fitting"]) == (len(moments), sum(fits))
    assert found["precision"] == found["right"] / found["above"]
    [watch, _] = watched.document("watch", "list")["watches"]
    assert watch["min_probability"] == found["min_probability"]
    assert watch["calibration"] == found
    code, _ = watched.command("watch", "calibrate", "gate", "--answers", "-", stdin="{")
    assert code == 2


def test_a_person_is_asked(watched: Watched) -> None:
    """Yes to the first, skip the second, an answer that is none, no to the third, enough."""
    moments = watched.document("watch", "calibrate", "gate")["moments"]
    assert len(moments) >= 3
    code, printed = watched.command("watch", "calibrate", "gate", stdin="y\ns\nwhat\nn\nq\n")
    assert code == 0, printed
    said = " ".join(printed.split())
    assert "Of 1 judged moment at or above it 1 fits: precision 100%, 95% interval 21%" in said
    [watch, _] = watched.document("watch", "list")["watches"]
    middle = (moments[0]["probability"] + moments[2]["probability"]) / 2
    assert watch["min_probability"] == pytest.approx(middle, abs=1e-5)


def test_the_command_of_the_service_sets_what_it_said(watched: Watched) -> None:
    """Run by a shell, as people copy it."""
    start, end, _ = watched.scene()
    with serving(watched.settings) as running:
        address = "/api/watches/gate/calibration"
        moments = running.client.get(address).json()["moments"]
        shown = watched.document("watch", "calibrate", "gate")["moments"]
        assert [{name: m[name] for name in shown[0]} for m in moments] == shown
        given = [
            {name: m[name] for name in ("video", "frame_index")}
            | {"fits": start <= m["time_seconds"] < end}
            for m in moments
        ]
        found = running.client.post(address, json={"answers": given}).json()
    command = found.pop("command")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command], env={**os.environ, "PATH": path}, check=True)
    [watch, _] = watched.document("watch", "list")["watches"]
    assert watch["min_probability"] == found["min_probability"]
    assert watch["calibration"] == found


def test_hits_are_shown_over_http_and_on_the_page(watched: Watched) -> None:
    [hit] = watched.document("watch", "hits", "gate")["hits"]
    with serving(watched.settings) as running:
        client: httpx.Client = running.client
        watches = watched.document("watch", "list")["watches"]
        assert client.get("/api/watches").json()["watches"] == watches
        page = client.get("/api/watches?limit=1").json()
        assert (page["watches"], page["total"]) == (watches[:1], 2)
        rest = client.get(page["next"]).json()
        assert (rest["watches"], rest["next"]) == (watches[1:], None)
        answer = client.get("/api/watches/gate/hits").json()
        assert answer == {"hits": [hit], "total": 1, "next": None}
        assert client.get("/api/watches/gate/hits?limit=1&offset=1").json()["hits"] == []
        missing = client.get("/api/watches/shed/hits")
        assert missing.status_code == 404
        assert missing.json()["error"]["message"] == (
            "there is no watch 'shed'; there are: gate, yard"
        )
        assert client.get(hit["thumbnail_url"]).status_code == 200
        for page in (client.get("/watches").text, client.get("/watches?name=gate").text):
            assert f"/videos/{hit['video_id']}?t={hit['time_seconds']:g}" in page
            assert f"{hit['thumbnail_url']}?width=320" in page
            assert f'data-id="{hit["video_id"]}" data-start="' in page, "scripts preview the moment"
            assert "S3CRET" not in page
        assert "Nothing yet" in client.get("/watches?name=yard").text
        assert client.get("/watches?name=shed").status_code == 404
        assert 'href="/watches"' in client.get("/status").text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "gate", "x", "--min-probability", "0.5"), "there is a watch 'gate'"),
        (("add", "a/b", "x", "--min-probability", "0.5"), "is no name for a watch"),
        (("add", "a", "x", "--min-probability", "0.5", "--webhook", "file:///x"), "--webhook: giv"),
        (("remove", "shed"), "there is no watch 'shed'; there are: gate, yard"),
    ],
)
def test_what_cannot_be_done_is_said(
    watched: Watched, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = watched.command("watch", *arguments)
    assert code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_removed_watch_takes_its_hits_along(watched: Watched) -> None:
    assert watched.document("watch", "remove", "yard") == {"name": "yard"}
    assert [w["name"] for w in watched.document("watch", "list")["watches"]] == ["gate"]

"""What `materialize` says of a Dagster that does not have what it was given."""

from pathlib import Path
from typing import Any

import pytest
from dagster_graphql.schema import create_schema
from graphql import parse, validate

from siglip_pipeline.errors import DagsterAwayError, LaunchError
from siglip_pipeline.records import Stage
from siglip_pipeline.runs import dagster_api, remote
from siglip_pipeline.runs.dagster_api import DagsterApi, RunState
from siglip_pipeline.runs.remote import materialize_remotely
from siglip_pipeline.runs.waiting import Standstill
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database


def test_every_query_is_one_of_this_dagster() -> None:
    schema = create_schema().graphql_schema
    queries = {
        name: text
        for name, text in vars(dagster_api).items()
        if isinstance(text, str) and text.lstrip().startswith(("query", "mutation"))
    }
    assert len(queries) > 8
    assert {n: e for n, t in queries.items() if (e := validate(schema, parse(t)))} == {}


def test_a_webserver_that_is_started_again_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on without it; `materialize` ended."""
    answers = iter(["STARTED", None, None, "SUCCESS"])

    def state(_: object, run: str) -> RunState:
        status = next(answers)
        if status is None:
            raise DagsterAwayError("connection refused")
        return RunState(run_id=run, status=status, will_retry=False, retried_as=None)

    monkeypatch.setattr(DagsterApi, "_find_repository", lambda *_: None)
    monkeypatch.setattr(DagsterApi, "run_state", state)
    monkeypatch.setattr("siglip_pipeline.runs.remote.time.sleep", lambda _: None)
    api, quiet = DagsterApi("http://127.0.0.1:1"), Standstill(print)
    assert remote._wait_for_run(api, "r", quiet).status == "SUCCESS"
    monkeypatch.setattr(remote, "_AWAY_SECONDS", 0.0)
    answers = iter([None])
    with pytest.raises(DagsterAwayError):
        remote._wait_for_run(api, "r", quiet)


class _Forgetful:
    """A Dagster in which somebody deletes each new partition."""

    def add_partitions(self, keys: Any) -> None:
        pass

    def report(self, uploads: Any) -> None:
        pass

    def partition_keys(self, asset: str) -> list[str]:
        return ["another.mp4"]


def test_a_partition_that_is_gone_is_named(
    tmp_path: Path, database: Database, database_url: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    api: Any = _Forgetful()
    settings = Settings.load(
        home=tmp_path / "home", uploads=str(tmp_path), database_url=database_url
    )
    with pytest.raises(LaunchError, match=r"no partition 'a\.mp4' of video_frames: it was deleted"):
        materialize_remotely(
            api,
            settings,
            ["a.mp4"],
            assets=[Stage.FRAMES],
            force=False,
            standstill=Standstill(print),
        )

"""`up`, a daemon and separate workers index new uploads while processes are killed."""

from pathlib import Path

import httpx
import pytest

from siglip_pipeline.runs.dagster_api import DagsterApi
from siglip_pipeline_tests.distributed.hosts import await_waiting_step
from siglip_pipeline_tests.distributed.proof import Fault, Proof, kill_an_embedder
from siglip_pipeline_tests.distributed.services import RedisServer, require_redis, wait_until

TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


def test_a_collection_outlives_a_killed_worker(tmp_path: Path) -> None:
    require_redis()
    broker = RedisServer(tmp_path / "broker")
    with Proof.started(tmp_path, broker, videos=6, decoders=1, visibility_seconds=20) as proof:
        proof.run([Fault(0.5, kill_an_embedder)])
        report = proof.report()
        _terminate_as_the_ui_does(proof)
        stored = proof.cluster.rows()
    assert report["exact"], report
    assert len(report["faults"]) == 1, report
    assert report["model_loaded_once_per_life"], report
    # The killed worker's step was given to another: its run neither failed nor hung.
    assert report["failed_runs"] == []
    assert set(report["runs"]) == {"SUCCESS"}
    assert stored == proof.expected


def test_workers_that_know_of_no_part_index_one(tmp_path: Path) -> None:
    require_redis()
    broker = RedisServer(tmp_path / "broker")
    with Proof.started(
        tmp_path, broker, videos=2, decoders=1, embedders=1, part="south/eu-1"
    ) as proof:
        proof.run()
        report = proof.report()
    assert report["exact"], report
    assert set(report["runs"]) == {"SUCCESS"}


def _terminate_as_the_ui_does(proof: Proof) -> None:
    """A run is terminated while a worker is at its step: it ends as cancelled, the step whole."""
    video = min(proof.expected)
    url = f"http://127.0.0.1:{proof.cluster.settings.dagster_port}"
    config = {"ops": {"frame_embeddings": {"config": {"force": True}}}}
    known = {run.run_id for run in proof.runs()}
    with proof.cluster.held(video) as connection:
        DagsterApi(url).launch_backfill(["frame_embeddings"], [video], config=config)
        await_waiting_step(connection)
        done = _steps_done(proof)
        (run,) = (run for run in proof.runs() if run.run_id not in known)
        answer = httpx.post(
            f"{url}/graphql", json={"query": TERMINATE, "variables": {"run": run.run_id}}
        )
        assert "TerminateRunSuccess" in answer.text
        wait_until(
            lambda: {r.run_id: r for r in proof.runs()}[run.run_id].is_finished,
            "the run ends while its step goes on",
            60,
        )
    ended = {r.run_id: r.status.value for r in proof.runs()}
    assert ended[run.run_id] == "CANCELED"
    wait_until(lambda: _steps_done(proof) > done, "the step ends", 120)


def _steps_done(proof: Proof) -> int:
    return sum(host.said.count("] succeeded in") for host in proof.embedders)

"""The whole arrangement: `up`, a daemon and workers of their own index what arrives, under fire."""

from pathlib import Path

import pytest

from siglip_pipeline.launcher import free_port
from siglip_pipeline_tests.distributed.hosts import cluster
from siglip_pipeline_tests.distributed.proof import Fault, Proof, kill_an_embedder
from siglip_pipeline_tests.distributed.services import RedisServer, require_redis

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


def test_a_collection_outlives_a_killed_worker(tmp_path: Path) -> None:
    require_redis()
    with cluster(
        tmp_path,
        RedisServer(tmp_path / "broker"),
        celery_visibility_seconds=20,
        page_port=free_port(),
        dagster_port=free_port(),
    ) as hosts:
        proof = Proof(hosts, videos=6, decoders=["decoder"], embedders=["embedder1", "embedder2"])
        proof.run([Fault(0.5, kill_an_embedder)])
        report = proof.report()
    assert report["exact"], report
    assert len(report["faults"]) == 1, report
    assert report["model_loaded_once_per_life"], report
    # The killed worker's step was given to another: its run neither failed nor hung.
    assert report["failed_runs"] == []
    assert set(report["runs"]) == {"SUCCESS"}

"""The asset `watch_hits`, run by Dagster over stored vectors."""

from contextvars import Context
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.defs.resources import DatabaseResource, SiglipResource
from siglip_pipeline.defs.watch_hits import watch_hits
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.watches import WatchStore
from siglip_pipeline_tests.store import made

VIDEOS = ["a.mp4", "b.mp4", "c.mp4"]


def test_a_video_that_cannot_be_matched_fails_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGLIP_DATABASE_URL", database.url.reveal())
    monkeypatch.setenv("SIGLIP_MODEL_NAME", str(MODEL_FOLDER))
    monkeypatch.setenv("SIGLIP_HOME", str(tmp_path))
    spec = SiglipResource().spec()
    model_id = ModelStore(database).register(spec)
    film_ND = np.random.default_rng(1).standard_normal((12, spec.dim)).astype(np.float32)
    film_ND /= np.linalg.norm(film_ND, axis=1, keepdims=True)
    for video in VIDEOS:
        made.record(database, video)
        made.load(database, model_id, video, film_ND)
    WatchStore(database).add("all", "a dog", min_probability=0.0)
    with database.connection() as connection:
        connection.execute(
            "UPDATE ingests SET frames = -1 FROM videos v "
            "WHERE v.video_id = ingests.video_id AND v.path = 'b.mp4'"
        )
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(VIDEOS_PARTITIONS_NAME, VIDEOS)
    # A context of its own: this one may refer to the Dagster instance of an earlier test.
    done = Context().run(
        lambda: dg.materialize(
            [watch_hits],
            resources={"database": DatabaseResource(), "siglip": SiglipResource()},
            instance=instance,
            selection=[watch_hits],
            tags={RANGE_START_TAG: VIDEOS[0], RANGE_END_TAG: VIDEOS[-1]},
            raise_on_error=False,
        )
    )
    assert not done.success
    assert instance.get_materialized_partitions(watch_hits.key) == {"a.mp4", "c.mp4"}
    assert {found.hit.video for found in WatchStore(database).hits()} == {"a.mp4", "c.mp4"}
    (failed,) = done.get_step_failure_events()
    error = failed.step_failure_data.user_failure_data
    assert error is not None
    assert "b.mp4: it could not be matched" in (error.description or "")

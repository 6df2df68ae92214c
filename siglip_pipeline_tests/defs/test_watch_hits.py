"""The asset `watch_hits`, run by Dagster over stored vectors."""

from contextvars import Context
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.defs.resources import DatabaseResource, SiglipResource
from siglip_pipeline.defs.watch_hits import watch_hits
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.watches import WatchStore
from siglip_pipeline_tests.defs.embedded_alike import embed_alike

VIDEOS = ["a.mp4", "b.mp4", "c.mp4"]


def test_a_video_that_cannot_be_matched_fails_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    embed_alike(database, monkeypatch, tmp_path, VIDEOS)
    WatchStore(database).add("all", "a dog", min_probability=0.0)
    with database.connection() as connection:
        [(broken,)] = connection.execute(
            "SELECT video_id FROM videos WHERE path = 'b.mp4'"
        ).fetchall()
        connection.execute(f"ALTER TABLE watch_hits ADD CHECK (video_id <> {broken})")
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

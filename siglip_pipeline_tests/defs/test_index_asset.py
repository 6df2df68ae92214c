"""The asset `similarity_index`, from the condition that requests it to what searches then see."""

from contextvars import Context
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.defs.assets import similarity_index
from siglip_pipeline.defs.resources import DatabaseResource, SiglipResource
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline_tests.defs.embedded_alike import embed_alike
from siglip_pipeline_tests.defs.test_automation_conditions import FRAMES, VECTORS, Collection


def index() -> str:
    """The outcome of a run, whose checks pass."""
    # A context of its own: this one may refer to the Dagster instance of an earlier test.
    done = Context().run(
        lambda: dg.materialize(
            [similarity_index],
            resources={"database": DatabaseResource(), "siglip": SiglipResource()},
            selection=[similarity_index],
        )
    )
    assert all(check.passed for check in done.get_asset_check_evaluations())
    [made] = done.asset_materializations_for_node("similarity_index")
    return str(made.metadata["outcome"].value)


def test_nothing_is_searchable_before_the_first_video_that_has_frames(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGLIP_INDEX_RECALL_QUERIES", "4")
    embed_alike(database, monkeypatch, tmp_path, [])
    with dg.DagsterInstance.ephemeral() as instance:
        collection = Collection(instance, similarity_index.key)
        assert not any(collection.tick(seconds=20) for _ in range(35)), "for eleven minutes"
        video = collection.add(1)  # whose file has no frames: it is made, and has no vectors
        collection.make(FRAMES, video)
        collection.make(VECTORS, video)
        assert collection.tick()
    assert index() == "empty"
    assert ModelStore(database).active() is None
    embed_alike(database, monkeypatch, tmp_path, ["a.mp4"])
    assert index() == "published"
    assert ModelStore(database).active() is not None

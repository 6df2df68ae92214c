"""The asset `video_similarity`, run by Dagster over stored vectors."""

from contextvars import Context
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.defs.resources import DatabaseResource, SiglipResource
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.store.database import Database
from siglip_pipeline_tests.defs.embedded_alike import embed_alike


def test_copies_are_shown_as_a_table(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    embed_alike(database, monkeypatch, tmp_path, ("a.mp4", "b.mp4"))
    # A context of its own: this one may refer to the Dagster instance of an earlier test.
    done = Context().run(
        lambda: dg.materialize(
            [video_similarity],
            resources={"database": DatabaseResource(), "siglip": SiglipResource()},
            instance=dg.DagsterInstance.ephemeral(),
            selection=[video_similarity],
        )
    )
    (event,) = done.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert metadata["duplicates"].value == 1
    table = metadata["segments"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [(row.data["video_a"], row.data["video_b"]) for row in table.records] == [
        ("a.mp4", "b.mp4")
    ]

"""The asset `video_similarity`, run by Dagster over stored vectors."""

from contextvars import Context
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from siglip_pipeline.defs.resources import DatabaseResource, SiglipResource
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline_tests.store import made


def test_copies_are_shown_as_a_table(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGLIP_DATABASE_URL", database.url.reveal())
    monkeypatch.setenv("SIGLIP_MODEL_NAME", str(MODEL_FOLDER))
    monkeypatch.setenv("SIGLIP_HOME", str(tmp_path))
    spec = SiglipResource().spec()
    model_id = ModelStore(database).register(spec)
    film_ND = np.random.default_rng(1).standard_normal((12, spec.dim)).astype(np.float32)
    film_ND /= np.linalg.norm(film_ND, axis=1, keepdims=True)
    for video in ("a.mp4", "b.mp4"):
        made.record(database, video)
        made.load(database, model_id, video, film_ND)
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

"""Videos with the same vectors under the demo's model, in the database that assets then use."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from siglip_pipeline.defs.resources import SiglipResource
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline_tests.store import made


def embed_alike(
    database: Database, monkeypatch: pytest.MonkeyPatch, home: Path, videos: Iterable[str]
) -> None:
    """Set the settings of assets, and record twelve frames with vectors for each video."""
    monkeypatch.setenv("SIGLIP_DATABASE_URL", database.url.reveal())
    monkeypatch.setenv("SIGLIP_MODEL_NAME", str(MODEL_FOLDER))
    monkeypatch.setenv("SIGLIP_HOME", str(home))
    spec = SiglipResource().spec()
    model_id = ModelStore(database).register(spec)
    film_ND = np.random.default_rng(1).standard_normal((12, spec.dim)).astype(np.float32)
    film_ND /= np.linalg.norm(film_ND, axis=1, keepdims=True)
    for video in videos:
        made.record(database, video)
        made.load(database, model_id, video, film_ND)

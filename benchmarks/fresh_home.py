"""A home for one benchmark: settings, and an embedded database that is stopped afterwards."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.services.home import pipeline_environment
from siglip_pipeline.settings import Settings


@contextmanager
def fresh_home(**overrides: Any) -> Iterator[Settings]:
    """A fresh home, named in the environment, with an empty folder of uploads and the demo's model.

    Args:
        overrides: settings of this benchmark alone.
    """
    # In a folder that the user who runs Postgres for root can reach.
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)
        uploads = Path(folder) / "uploads"
        uploads.mkdir()
        usual = {
            "uploads": str(uploads),
            "model_name": str(MODEL_FOLDER),
            "device": "cpu",
            "uploads_settle_seconds": 0,
        }
        settings = Settings.load(home=Path(folder) / "home", **{**usual, **overrides})
        with pipeline_environment(settings) as complete:
            yield complete

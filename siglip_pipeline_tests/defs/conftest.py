"""Uploads without films, Dagster's storage in memory, and a tick of a sensor."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.definitions import defs


@pytest.fixture
def uploads(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setenv("SIGLIP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SIGLIP_UPLOADS", str(folder))
    monkeypatch.setenv("SIGLIP_DATABASE_URL", database_url)
    monkeypatch.setenv("SIGLIP_UPLOADS_SETTLE_SECONDS", "0")
    return folder


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(sensor: dg.SensorDefinition, instance: dg.DagsterInstance) -> object:
    """Evaluate a sensor with the resources of the definitions."""
    context = dg.build_sensor_context(
        instance=instance, definitions=defs, resources=dict(defs.resources or {})
    )
    return sensor(context)

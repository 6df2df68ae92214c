"""What `materialize` says of a Dagster that does not have what it was given."""

from pathlib import Path
from typing import Any

import pytest

from siglip_pipeline.errors import LaunchError
from siglip_pipeline.records import Stage
from siglip_pipeline.runs.remote import materialize_remotely
from siglip_pipeline.runs.waiting import Standstill
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database


class _Forgetful:
    """A Dagster in which somebody deletes each new partition."""

    def add_partitions(self, keys: Any) -> None:
        pass

    def report(self, uploads: Any) -> None:
        pass

    def partition_keys(self, asset: str) -> list[str]:
        return ["another.mp4"]


def test_a_partition_that_is_gone_is_named(
    tmp_path: Path, database: Database, database_url: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    api: Any = _Forgetful()
    settings = Settings.load(
        home=tmp_path / "home", uploads=str(tmp_path), database_url=database_url
    )
    with pytest.raises(LaunchError, match=r"no partition 'a\.mp4' of video_frames: it was deleted"):
        materialize_remotely(
            api,
            settings,
            ["a.mp4"],
            assets=[Stage.FRAMES],
            force=False,
            standstill=Standstill(print),
        )

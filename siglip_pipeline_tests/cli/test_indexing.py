"""What `materialize` does while the first videos are decoded."""

import contextlib
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from siglip_pipeline.cli import indexing
from siglip_pipeline.cli.indexing import Choice, materialize_uploads
from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Stage
from siglip_pipeline.runs import in_process
from siglip_pipeline.services.home import with_databases
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip import model as loader
from siglip_pipeline.stages.stage_results import note_failure
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.terminal import progress
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline_tests.conftest import collection_settings


class _Model:
    """Stands for loading a model."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, *_: Any, **__: Any) -> tuple[()]:
        self.asked.set()
        return ()


@pytest.mark.parametrize(
    ("assets", "loads"), [([], True), ([Stage.FRAMES], False), ([Stage.VECTORS], False)]
)
def test_the_model_loads_while_videos_are_decoded(
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    assets: list[str],
    loads: bool,
) -> None:
    model = _Model()
    seen: list[bool] = []
    monkeypatch.setattr(loader, "get_model", model)

    def decode(*_: Any, **__: Any) -> bool:
        seen.append(model.asked.wait(60 if loads else 0.2))
        return True

    def no_status(*_: Any, **__: Any) -> None:
        raise AssertionError("nobody sees the progress, so nobody need ask for it")

    monkeypatch.setattr(in_process, "materialize_videos", decode)
    monkeypatch.setattr(indexing, "watch_until", no_status)
    settings = collection_settings(tmp_path, database_url, dagster_postgres_url=database_url)
    (tmp_path / "uploads" / "one.mp4").write_bytes(b"not decoded here")
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        note_failure(VideoStore(database), VideoError("one.mp4", "no film"), Stage.FRAMES)
    document = materialize_uploads(
        settings,
        Choice(videos=["one.mp4"]),
        assets=assets,
        force=False,
        wait=True,
        dagster_url=None,
        quiet=True,
    )
    assert document.videos == ("one.mp4",)
    assert seen == [loads]


def test_waiting_for_services_asks_for_its_videos_alone(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the whole collection, twice a second, would be most of the work of `up`."""

    def no_status(*_: Any, **__: Any) -> None:
        raise AssertionError("nobody sees the progress, so nobody need ask for it")

    monkeypatch.setattr(indexing, "watch_until", no_status)
    monkeypatch.setattr(progress, "collect_status", no_status)
    settings = collection_settings(tmp_path, database_url)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        note_failure(VideoStore(database), VideoError("one.mp4", "no film"), Stage.FRAMES)
    outcome = indexing._wait_for_services(settings, ["one.mp4"], quiet=True)
    assert [(video.video, video.reason) for video in outcome.failed] == [("one.mp4", "no film")]


@pytest.mark.timeout(60)
def test_waiting_does_not_take_the_state_of_an_earlier_file(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ingest --replace --wait` ended at once, with what had become of the file before."""
    settings = collection_settings(tmp_path, database_url)
    file = tmp_path / "uploads" / "one.mp4"
    file.write_bytes(b"the earlier one")
    looks: list[str] = []
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        announced, videos = AnnouncedUploads(database), VideoStore(database)
        announced.register([UploadStore(settings.uploads, settle_seconds=0).get("one.mp4")])
        note_failure(videos, VideoError("one.mp4", "no film"), Stage.FRAMES)
        file.write_bytes(b"the present one")

        def tried_after_three_looks(_: float) -> None:
            looks.append(announced.listed_fingerprints()["one.mp4"])
            if len(looks) == 3:
                note_failure(videos, VideoError("one.mp4", "no film either"), Stage.FRAMES)

        monkeypatch.setattr("siglip_pipeline.cli.indexing.time.sleep", tried_after_three_looks)
        monkeypatch.setattr(indexing, "running", lambda _: object())
        monkeypatch.setattr("siglip_pipeline.runs.waiting._dagster", lambda *_: None)
        outcome = indexing._wait_for_services(settings, ["one.mp4"], quiet=True)
    assert [video.reason for video in outcome.failed] == ["no film either"]
    assert looks[0] == "", "it is announced again, even if it was: that run may have been lost"


def test_the_database_starts_while_dagster_is_imported(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)

    def importing(name: str) -> Any:
        both.wait(60)
        return import_module(name)

    @contextlib.contextmanager
    def starting(settings: Settings) -> Iterator[Settings]:
        both.wait(60)
        with with_databases(settings) as ready:
            yield ready

    monkeypatch.setattr(indexing, "import_module", importing)
    monkeypatch.setattr(indexing, "with_databases", starting)
    monkeypatch.setattr(in_process, "materialize_videos", lambda *_, **__: True)
    settings = collection_settings(tmp_path, database_url, dagster_postgres_url=database_url)
    outcome = indexing._index_here(settings, ["one.mp4"], assets=[Stage.INDEX], quiet=True)
    assert outcome.indexed == ()
    assert not both.broken

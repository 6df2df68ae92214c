"""Runs at once on a machine with two cards: two processes, one real database, made-up cards."""

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.stages.frame_sampling import FramesStored, sample_videos
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.conftest import collection_settings
from siglip_pipeline_tests.stages import card_run

VIDEOS = [f"{number}.mp4" for number in range(8)]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([card_run.__name__])


@dataclass
class Run:
    """A process that embeds, and how to speak to it."""

    process: ForkServerProcess
    asked: "Connection[object, Any]"

    def go(self) -> None:
        self.asked.send("go")

    def end(self) -> None:
        self.process.kill()
        self.process.join()


Start = Callable[[list[str], list[str]], Run]


@pytest.fixture
def start(tmp_path: Path, database: Database, database_url: str) -> Iterator[Start]:
    """Start a run of some videos, and wait until it has its model; it goes on with a line."""
    values = {"sampling": "fps:4", "cache": str(tmp_path / "cache"), "decode_workers": 1}
    settings = collection_settings(tmp_path / "home", database_url, **values)
    uploads = UploadStore(settings.uploads, settle_seconds=0)
    folder = Path(settings.uploads)
    render_video(folder / VIDEOS[0], demo_scenes()[:2], seconds_per_scene=2, fps=10)
    for number, name in enumerate(VIDEOS[1:]):
        shutil.copy(folder / VIDEOS[0], folder / name)
        with (folder / name).open("ab") as film:  # the same frames, and not the same content
            film.write(b"\0\0\0\x09free" + bytes([number]))
    AnnouncedUploads(database).register(uploads.scan())
    for sampled in sample_videos(
        VIDEOS,
        uploads=uploads,
        frame_store=FrameStore(settings.frame_store_url),
        database=database,
        options=FramesOptions.from_settings(settings),
    ):
        assert isinstance(sampled, FramesStored), sampled
    names = ("home", "uploads", "model_name", "database_url", "cache")
    environment = {
        key: value
        for key, value in settings.environment().items()
        if key.removeprefix("SIGLIP_").lower() in names
    }
    runs: list[Run] = []

    def begin(videos: list[str], ahead: list[str]) -> Run:
        asked, answers = FORKS.Pipe()
        task = (answers, videos, tuple(ahead), environment)
        run = Run(FORKS.Process(target=card_run.run, args=task), asked)
        runs.append(run)
        run.process.start()
        answers.close()  # or its end would not be noticed
        assert run.asked.recv() == "ready"
        return run

    yield begin
    for run in runs:
        run.end()


def _go(*runs: Run) -> list[dict[str, Any]]:
    for run in runs:
        run.go()
    assert all(run.asked.poll(60) for run in runs)
    return [run.asked.recv() for run in runs]


def _stored(database: Database) -> list[str]:
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT path FROM ingests JOIN videos USING (video_id) ORDER BY path"
        )
        return [row[0] for row in rows]


def test_two_runs_use_two_cards_and_share_what_waits(start: Start, database: Database) -> None:
    waiting = VIDEOS[4:]
    first, second = _go(start(VIDEOS[:2], waiting), start(VIDEOS[2:4], waiting))
    assert [first["device"], second["device"]] == ["a card (cuda:0)", "a card (cuda:1)"]
    assert set(VIDEOS[:2]) <= set(first["written"])
    assert set(VIDEOS[2:4]) <= set(second["written"])
    # Each was embedded once, by one of them.
    assert sorted(first["written"] + second["written"]) == VIDEOS == _stored(database)
    assert min(len(first["written"]), len(second["written"])) > 2


def test_a_run_that_is_killed_leaves_its_card_and_its_videos_to_others(
    start: Start, database: Database
) -> None:
    killed = start(VIDEOS[:1], VIDEOS[1:])
    killed.go()
    deadline = time.monotonic() + 30
    while not _stored(database):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.end()
    _wait_for_no_claims(database)
    [again] = _go(start(VIDEOS, []))
    assert again["device"] == "a card (cuda:0)"
    assert again["written"]
    assert _stored(database) == VIDEOS


def _wait_for_no_claims(database: Database) -> None:
    """Wait until the server has noticed that a client is gone."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with database.connection() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            ).fetchone()
        if row == (0,):
            return
        time.sleep(0.05)
    raise psycopg.OperationalError("claims are still held")

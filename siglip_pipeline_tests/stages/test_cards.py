"""Runs at once on a machine with two cards: two processes, one real database, made-up cards."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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

VIDEOS = [f"{number}.mp4" for number in range(8)]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, database: Database, database_url: str) -> Iterator[Start]:
    """Start a run of some videos, and wait until it has its model; it goes on with a line."""
    values = {"sampling": "fps:4", "cache": str(tmp_path / "cache"), "decode_workers": 1}
    settings = collection_settings(tmp_path / "home", database_url, **values)
    uploads = UploadStore(settings.uploads, settle_seconds=0)
    folder = Path(settings.uploads)
    render_video(folder / VIDEOS[0], demo_scenes()[:2], seconds_per_scene=2)
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
    runs: list[subprocess.Popen[str]] = []

    def begin(videos: list[str], ahead: list[str]) -> "subprocess.Popen[str]":
        names = ("home", "uploads", "model_name", "database_url", "cache")
        environment = {
            key: value
            for key, value in settings.environment().items()
            if key.removeprefix("SIGLIP_").lower() in names
        }
        task = {"videos": videos, "ahead": ahead}
        run = subprocess.Popen(
            [sys.executable, "-m", "siglip_pipeline_tests.stages.card_run", json.dumps(task)],
            env={**os.environ, **environment, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        runs.append(run)
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        return run

    yield begin
    for run in runs:
        run.kill()
        run.wait()


def _go(*runs: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    return [json.loads(run.communicate(timeout=60)[0]) for run in runs]


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
    assert killed.stdin is not None
    killed.stdin.write("go\n")
    killed.stdin.flush()
    deadline = time.monotonic() + 30
    while not _stored(database):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.wait()
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

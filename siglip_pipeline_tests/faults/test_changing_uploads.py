"""Uploads that are replaced while they are decoded, or deleted while they are embedded."""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from siglip_pipeline.defs.sensors import upload_changes
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.stages.removal import forget_video
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import LOCK_VIDEO, DatabaseOptions, open_database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.faults.conftest import Make
from siglip_pipeline_tests.faults.harness import Pipeline, Stored, wait_until
from siglip_pipeline_tests.faults.pauses import armed, await_pause
from siglip_pipeline_tests.processes import descendants

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

VIDEO = "film.mp4"
FRAMES_STAGE = ("materialize", VIDEO, "--assets", "video_frames", "--json")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two films that take a second or so to decode: an old one and the one that replaces it."""
    folder = tmp_path_factory.mktemp("versions")
    scenes = demo_scenes()
    films = []
    for name, chosen in (("old.mp4", scenes[:5]), ("new.mp4", scenes[5:11])):
        film = render_video(folder / name, chosen, seconds_per_scene=4, size=(640, 480))
        films.append(film.path)
    return films[0], films[1]


@pytest.fixture(scope="module")
def right(
    versions: tuple[Path, Path], make_pipeline: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Stored, Stored]:
    """What each of the two gives, undisturbed."""
    found = []
    for film in versions:
        folder = tmp_path_factory.mktemp("uploads")
        shutil.copyfile(film, folder / VIDEO)
        pipeline = make_pipeline(uploads=folder)
        pipeline.finish()
        found.append(pipeline.stored())
    return found[0], found[1]


def decoders(pid: int) -> list[psutil.Process]:
    return descendants("siglip_pipeline.video.worker", of=pid)


def waiting(connection: "psycopg.Connection[Any]") -> int:
    """How many wait for an advisory lock of this database."""
    row = connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchone()
    assert row is not None
    return int(row[0])


def renamed_over(source: Path, target: Path) -> None:
    draft = target.with_name(".draft")
    shutil.copyfile(source, draft)
    draft.replace(target)


def written_over(source: Path, target: Path) -> None:
    with target.open("r+b") as file:
        file.write(source.read_bytes())
        file.truncate()


def _start_and_stop_decoder(pipeline: Pipeline, seconds: float) -> psutil.Process | None:
    """Start the stage, and stop its decoder this many seconds after it began to write."""
    pid = pipeline.start(*FRAMES_STAGE)
    drafts = Path(pipeline.settings.frame_store_url) / ".drafts"
    wait_until(lambda: [*drafts.glob("*")], "the decoder has begun", 60)
    time.sleep(seconds)
    for decoder in decoders(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            decoder.send_signal(signal.SIGSTOP)
            return decoder
    return None


@pytest.mark.parametrize("replace", [renamed_over, written_over])
def test_an_upload_replaced_while_it_is_decoded(
    replace: Callable[[Path, Path], None],
    versions: tuple[Path, Path],
    right: tuple[Stored, Stored],
    make_pipeline: Make,
    tmp_path: Path,
) -> None:
    struck = 0
    for step in range(5):
        uploads = tmp_path / str(step)
        uploads.mkdir()
        shutil.copyfile(versions[0], uploads / VIDEO)
        pipeline = make_pipeline(uploads=uploads)
        decoder = _start_and_stop_decoder(pipeline, 0.2 * step)
        replace(versions[1], uploads / VIDEO)
        if decoder is not None:
            struck += 1
            with contextlib.suppress(psutil.NoSuchProcess):
                decoder.send_signal(signal.SIGCONT)
        assert pipeline.zygote.status() in (0, 1), pipeline.said[-4000:]
        stored = pipeline.stored()
        # Of one film or of the other, or refused: never of both.
        assert stored.frames[VIDEO] in (
            [],
            right[0].frames[VIDEO],
            right[1].frames[VIDEO],
        ), f"step {step}"
        assert pipeline.run("materialize", VIDEO, "--json") == 0, pipeline.said[-4000:]
        assert pipeline.stored() == right[1], f"step {step}"
    assert struck >= 2, "the decoder was never caught at work"


def test_an_upload_deleted_while_it_is_decoded(
    versions: tuple[Path, Path], make_pipeline: Make, tmp_path: Path
) -> None:
    shutil.copyfile(versions[0], tmp_path / VIDEO)
    (tmp_path / "kept.txt").touch()  # an empty folder is taken for one that is not mounted
    pipeline = make_pipeline(uploads=tmp_path)
    decoder = _start_and_stop_decoder(pipeline, 0)
    (tmp_path / VIDEO).unlink()
    assert decoder is not None
    decoder.send_signal(signal.SIGCONT)
    assert pipeline.zygote.status() == 1
    stored = pipeline.stored()
    assert stored.frames[VIDEO] == []
    assert "deleted while it was decoded" in stored.failures[VIDEO]


@pytest.mark.parametrize("when", ["before its rows are written", "while they are written"])
def test_an_upload_deleted_while_it_is_embedded_is_forgotten_in_the_end(
    when: str,
    versions: tuple[Path, Path],
    right: tuple[Stored, Stored],
    make_pipeline: Make,
    tmp_path: Path,
) -> None:
    other = "other.mp4"
    shutil.copyfile(versions[0], tmp_path / other)
    pipeline = make_pipeline(uploads=tmp_path)
    pipeline.finish()
    shutil.copyfile(versions[1], tmp_path / VIDEO)
    assert pipeline.run(*FRAMES_STAGE) == 0, pipeline.said[-4000:]
    assert pipeline.settings.database_url is not None
    url = pipeline.settings.database_url.reveal()
    frames = FrameStore(pipeline.settings.frame_store_url)
    with open_database(DatabaseOptions.from_settings(pipeline.settings)) as database:
        if when == "while they are written":
            with armed(url, "COPY"):
                pipeline.start("materialize", VIDEO, "--json")
                await_pause(url, "the rows are half written")
                (tmp_path / VIDEO).unlink()
        else:
            row = VideoStore(database).get(VIDEO)
            assert row is not None
            lock = [LOCK_VIDEO, row.video_id]
            forgetting = threading.Thread(target=forget_video, args=[database, frames, VIDEO])
            with psycopg.connect(url, autocommit=True) as held:
                held.execute("SELECT pg_advisory_lock(%s, %s)", lock)
                forgetting.start()
                wait_until(lambda: waiting(held) == 1, "forgetting waits for the lock")
                pipeline.start("materialize", VIDEO, "--json")
                wait_until(lambda: waiting(held) == 2, "and the vectors wait behind it")
                (tmp_path / VIDEO).unlink()
                held.execute("SELECT pg_advisory_unlock(%s, %s)", lock)
            forgetting.join()
        status = pipeline.zygote.status()
        assert status == (1 if when.startswith("before") else 0), pipeline.said[-4000:]
        # What the sensors do at their next ticks.
        records = AnnouncedUploads(database)
        listing = list(UploadStore(tmp_path, settle_seconds=0).list())
        known = records.listed_fingerprints()
        gone = upload_changes(listing, known, frozenset(known)).deleted
        records.note_missing(gone)
        for video in records.missing_for(timedelta()):
            forget_video(database, frames, video)
    stored = pipeline.stored()
    assert {video for video, _ in stored.vectors} == set(stored.frames) == {other}
    assert {key[1]: value for key, value in stored.vectors.items()} == {
        key[1]: value for key, value in right[0].vectors.items()
    }
    assert not frames.exists(VIDEO)

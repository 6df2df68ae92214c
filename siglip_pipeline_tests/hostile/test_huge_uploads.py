"""Uploads that declare a huge size fail alone, and do not delay others."""

import os
import shutil
import time
from pathlib import Path

import pytest

from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.frame_sampling import FramesOutcome, FramesStored, sample_videos
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.stages.stage_results import NoFrames
from siglip_pipeline.store.database import Database
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video import decode_options
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.video.rendering import render

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("own_decoders")]


def sparse(path: Path, movie: Path, size_bytes: int) -> None:
    """A good video, followed by a hole up to a size."""
    shutil.copyfile(movie, path)
    os.truncate(path, size_bytes)


def sampled(
    folder: Path, database: Database, tmp_path: Path, settings: Settings
) -> tuple[dict[str, FramesOutcome], dict[str, float]]:
    uploads = UploadStore(folder, settle_seconds=0)
    outcomes: dict[str, FramesOutcome] = {}
    at: dict[str, float] = {}
    started = time.monotonic()
    for outcome in sample_videos(
        [upload.path for upload in uploads.list()],
        uploads=uploads,
        frame_store=FrameStore(tmp_path / "frames"),
        database=database,
        options=FramesOptions.from_settings(settings),
    ):
        outcomes[outcome.video] = outcome
        at[outcome.video] = time.monotonic() - started
    return outcomes, at


def test_the_time_to_hash_a_file_grows_with_its_size() -> None:
    options = DecodeOptions(hash_seconds_per_gib=0.01)
    assert [options.hash_seconds(gib * 2**30) for gib in (0, 200)] == [10, 12]


@pytest.mark.parametrize(
    ("size_bytes", "reason"),
    [
        (3 * 2**40, "it has 3,072 GiB, and at most 256 are read (SIGLIP_MAX_UPLOAD_GIB)"),
        (200 * 2**30, "than 5 s and was ended"),  # by the clock, or by its CPU time
    ],
)
def test_two_sparse_files_of_one_size_hold_up_nothing(
    size_bytes: int,
    reason: str,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode_options, "HASH_BASE_SECONDS", 3.0)  # two cores are busy until then
    folder = tmp_path / "uploads"
    folder.mkdir()
    movie = render(folder / "a.mp4", frames=30)
    shutil.copyfile(movie, folder / "copy of a.mp4")
    render(folder / "b.mp4", frames=20)
    for name in ("sparse_1.mp4", "sparse_2.mp4"):
        sparse(folder / name, movie, size_bytes)
    outcomes, at = sampled(folder, database, tmp_path, Settings.load(hash_seconds_per_gib=0.01))
    for name in ("a.mp4", "b.mp4", "copy of a.mp4"):
        assert isinstance(outcomes[name], FramesStored), (name, outcomes[name])
    for name in ("sparse_1.mp4", "sparse_2.mp4"):
        outcome = outcomes[name]
        assert isinstance(outcome, NoFrames)
        assert reason in outcome.reason
        assert max(at["a.mp4"], at["b.mp4"], at["copy of a.mp4"]) < at[name]
    assert max(at.values()) < 180  # reading one whole takes longer

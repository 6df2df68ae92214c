"""Each kind of warning, of a real file: stored, shown by status and pages, and a failed check."""

import html
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.defs.checks import check_frames
from siglip_pipeline.defs.metadata import frames_metadata
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.frame_sampling import FramesStored, sample_videos
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.stages.status import StatusOptions, collect_status
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index import recall
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.store import made
from siglip_pipeline_tests.video.ffmpeg_reference import REPORTS, ffmpeg
from siglip_pipeline_tests.web.conftest import serving

FILM = ("-f", "lavfi", "-i", "testsrc2=s=160x120:r=10:d=4")
H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "10")


def _plain(path: Path) -> None:
    ffmpeg(*FILM, *H264, path)


def _joined(path: Path) -> None:
    _plain(path)
    path.write_bytes(path.read_bytes() * 2)


def _followed_by_rubbish(path: Path) -> None:
    _plain(path)
    path.write_bytes(path.read_bytes() + bytes(range(1, 201)))


def _padded(path: Path) -> None:
    _plain(path)
    path.write_bytes(path.read_bytes() + bytes(999))


def _cut_off(path: Path) -> None:
    ffmpeg(*FILM, *H264, "-movflags", "+faststart", path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _two_tracks(path: Path) -> None:
    ffmpeg(*FILM, *FILM, "-map", "0", "-map", "1", *H264, path)


def _unknown_matrix(path: Path) -> None:
    ffmpeg(*FILM, "-c:v", "ffv1", "-pix_fmt", "yuv444p", "-colorspace", "11", path)


def _dolby_vision(path: Path) -> None:
    path.write_bytes((REPORTS / "dolby-vision-profile-5.mp4").read_bytes())


def _spoilt(path: Path) -> None:
    """Bytes in the middle that are no JPEG: those frames do not decode."""
    ffmpeg(*FILM, "-c:v", "mjpeg", path)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = b"\x55" * third
    path.write_bytes(data)


KINDS: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "joined": ("mp4", _joined, ["bytes after the end of the film, which begin another film,"]),
    "rubbish": ("mov", _followed_by_rubbish, ["200 bytes after the end of the film are left out"]),
    "cut off": ("mp4", _cut_off, ["% of it cannot be decoded", "% of the footage is not indexed"]),
    "tracks": ("mp4", _two_tracks, ["a second video track is left out: track 2"]),
    "colours": ("mkv", _unknown_matrix, ["colours are approximate: colour matrix 11"]),
    "dolby": ("mp4", _dolby_vision, ["colours are approximate: they are Dolby Vision's"]),
    "restart": ("ts", _joined, ["timestamps begin again 1 time"]),
    "damage": ("avi", _spoilt, ["% of it cannot be decoded", "% of the footage is not indexed"]),
    "good": ("mp4", _plain, []),
    "padded": ("mp4", _padded, []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_warning_is_stored_and_shown(
    kind: str, tmp_path: Path, database: Database, database_url: str
) -> None:
    suffix, make, expected = KINDS[kind]
    (tmp_path / "uploads").mkdir()
    video = f"film.{suffix}"
    make(tmp_path / "uploads" / video)
    settings = Settings.load(
        home=tmp_path / "home", uploads=str(tmp_path / "uploads"), database_url=database_url
    )
    frames = FrameStore(settings.frame_store_url)
    [result] = sample_videos(
        [video],
        uploads=UploadStore(settings.uploads, settle_seconds=0),
        frame_store=frames,
        database=database,
        options=FramesOptions.from_settings(settings),
    )
    assert isinstance(result, FramesStored), result
    warnings = result.stored.warnings
    assert len(warnings) == len(expected), warnings
    for warning, part in zip(warnings, expected, strict=True):
        assert part in warning
    row = VideoStore(database).get(video)
    assert row is not None
    assert tuple(row.warnings) == warnings
    shown = collect_status(database, StatusOptions.from_settings(settings)).video_warnings
    assert [(v.video, v.warnings) for v in shown] == ([(video, warnings)] if expected else [])
    assert frames_metadata(result, frames)["warnings"] == [*warnings]
    [check] = [c for c in check_frames(result) if c.name == "footage_is_whole"]
    assert (check.passed, check.severity) == (not expected, dg.AssetCheckSeverity.WARN)
    with serving(settings) as service:
        for page in (f"/videos/{row.video_id}", "/status"):
            text = html.unescape(service.client.get(page).text)
            assert all(warning in text for warning in warnings), page
        count = f"{len(warnings)} warning"
        assert (count in service.client.get("/videos").text) == bool(expected)
        assert service.client.get("/api/videos").json()["videos"][0]["warnings"] == [*warnings]


def test_problems_of_the_whole_pipeline_are_on_the_page_of_its_state(
    tmp_path: Path, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused index, uploads that are not there, and results of other settings."""
    model_id = made.collection(database, videos=2)

    def fault(report: recall.RecallReport, _: float) -> str | None:
        return None if report.kind == "exact" else "recall@10 is 0.9"

    monkeypatch.setattr(recall.RecallReport, "fault", fault)
    build_index(database, model_id, options=made.index_options())
    settings = Settings.load(
        home=tmp_path / "home", uploads=str(tmp_path / "gone"), database_url=database_url
    )
    status = collect_status(database, StatusOptions.from_settings(settings))
    folder, index, *_ = status.warnings
    assert folder.startswith("what SIGLIP_UPLOADS names is no folder")
    assert index.startswith("every frame is compared with each query")
    assert "refused was moments: recall@10 is 0.9; SIGLIP_INDEX_KIND=exact" in index
    assert len(status.out_of_date.videos) == 2
    with serving(settings) as service:
        text = html.unescape(service.client.get("/status").text)
    assert all(warning in text for warning in status.warnings)
    assert "with other settings than now, or from another file: 2" in text


def test_moments_that_took_the_place_of_hnsw_are_no_problem(
    tmp_path: Path, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = made.collection(database, videos=2)

    def fault(report: recall.RecallReport, _: float) -> str | None:
        return "recall@10 is 0.9" if report.kind == "hnsw" else None

    monkeypatch.setattr(recall.RecallReport, "fault", fault)
    varied = made.index_options(index_kind="auto", moment_threshold=0.9999)
    assert build_index(database, model_id, options=varied).kind == "moments"
    settings = Settings.load(home=tmp_path / "home", database_url=database_url)
    status = collect_status(database, StatusOptions.from_settings(settings))
    assert not any("every frame is compared" in warning for warning in status.warnings)

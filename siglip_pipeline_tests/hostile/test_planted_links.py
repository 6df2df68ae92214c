"""Links that another user has placed where an export writes are not followed."""

from collections.abc import Iterable
from pathlib import Path

from siglip_pipeline.hits import Hit
from siglip_pipeline.search.export import export_hits
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.clips import cut_clip
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.video.rendering import render
from siglip_pipeline_tests.video.test_frame_store import stored, write

OWN = b"a file of mine"


def planted(target: Path, *links: str) -> Path:
    """Plant links to a file elsewhere; that file."""
    mine = target.parent.parent / "mine"
    mine.write_bytes(OWN)
    target.parent.mkdir(exist_ok=True)
    for name in links:
        (target.parent / name).symlink_to(mine)
    return mine


def the_rest(folder: Path, target: Path) -> Iterable[Path]:
    return [path for path in folder.iterdir() if path != target and not path.is_symlink()]


def test_a_clip_is_written_through_no_link(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    render(uploads / "one.mp4", frames=25)
    target = tmp_path / "shared" / "clip.mp4"
    mine = planted(target, target.name, f".{target.name}.part")
    assert cut_clip(UploadStore(uploads), "one.mp4", 0, 0.5, target)
    assert mine.read_bytes() == OWN
    assert not target.is_symlink()
    assert target.read_bytes()[4:8] == b"ftyp"
    assert not the_rest(target.parent, target)


def test_a_thumbnail_is_written_through_no_link(tmp_path: Path) -> None:
    frames = FrameStore(tmp_path / "frames")
    write(frames, stored(1), "one.mp4")
    hit = Hit(
        video="one.mp4",
        video_id=1,
        time_seconds=0.0,
        frame_index=0,
        score=1.0,
        probability=0.5,
        start_seconds=0.0,
        end_seconds=1.0,
        media_time_seconds=0.0,
    )
    target = tmp_path / "shared" / "001-one.mp4-0.0s.jpg"
    mine = planted(target, target.name)
    (exported,) = export_hits(
        [hit], target.parent, frames=frames, uploads=UploadStore(tmp_path / "uploads")
    )
    assert (exported.path, exported.reason) == (target, None)
    assert mine.read_bytes() == OWN
    assert not target.is_symlink()
    assert target.read_bytes() == frames.thumbnail("one.mp4", 0)
    assert not the_rest(target.parent, target)

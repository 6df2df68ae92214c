"""Bringing files in: whole, once, and never over another file."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from siglip_pipeline.uploads.ingest import bring_in
from siglip_pipeline.uploads.upload_store import UploadStore


@pytest.fixture
def uploads(tmp_path: Path) -> UploadStore:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return UploadStore(str(folder), settle_seconds=0)


def _outcomes(
    paths: list[Path], uploads: UploadStore, *, shard: str | None = None, replace: bool = False
) -> dict[str, str]:
    found = bring_in(paths, uploads, shard=shard, replace=replace)
    return {item.video: item.outcome for item in found}


def test_files_go_into_the_shard(tmp_path: Path, uploads: UploadStore) -> None:
    source = tmp_path / "a.mp4"
    source.write_bytes(b"one")
    assert _outcomes([source], uploads, shard="north/1") == {"north/1/a.mp4": "copied"}
    assert [upload.path for upload in uploads.list()] == ["north/1/a.mp4"]


def test_files_keep_their_names_and_folders_their_structure(
    tmp_path: Path, uploads: UploadStore
) -> None:
    (tmp_path / "in/day").mkdir(parents=True)
    (tmp_path / "in/day/a.mp4").write_bytes(b"a")
    (tmp_path / "in/.hidden.mp4").write_bytes(b"h")
    (tmp_path / "b.mp4").write_bytes(b"b")
    assert _outcomes([tmp_path / "in", tmp_path / "b.mp4"], uploads) == {
        "day/a.mp4": "copied",
        "b.mp4": "copied",
    }
    assert (Path(uploads.url) / "day/a.mp4").read_bytes() == b"a"
    assert sorted(upload.path for upload in uploads.list()) == ["b.mp4", "day/a.mp4"]


def test_the_same_file_again_is_present(tmp_path: Path, uploads: UploadStore) -> None:
    (tmp_path / "a.mp4").write_bytes(b"same")
    _outcomes([tmp_path / "a.mp4"], uploads)
    before = uploads.get("a.mp4").fingerprint
    assert _outcomes([tmp_path / "a.mp4"], uploads) == {"a.mp4": "present"}
    assert uploads.get("a.mp4").fingerprint == before


def test_another_file_of_the_same_name_is_kept_unless_replaced(
    tmp_path: Path, uploads: UploadStore
) -> None:
    (Path(uploads.url) / "a.mp4").write_bytes(b"old!")
    (tmp_path / "a.mp4").write_bytes(b"new!")
    assert _outcomes([tmp_path / "a.mp4"], uploads) == {"a.mp4": "conflict"}
    assert (Path(uploads.url) / "a.mp4").read_bytes() == b"old!"
    assert _outcomes([tmp_path / "a.mp4"], uploads, replace=True) == {"a.mp4": "copied"}
    assert (Path(uploads.url) / "a.mp4").read_bytes() == b"new!"


def test_a_missing_file_costs_the_others_nothing(tmp_path: Path, uploads: UploadStore) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a")
    outcomes = _outcomes([tmp_path / "none.mp4", tmp_path / "a.mp4"], uploads)
    assert outcomes == {"none.mp4": "missing", "a.mp4": "copied"}


def test_a_file_that_lies_in_the_uploads_is_left_where_it_is(uploads: UploadStore) -> None:
    file = Path(uploads.url) / "sub" / "a.mp4"
    file.parent.mkdir()
    file.write_bytes(b"a")
    assert _outcomes([file], uploads) == {"sub/a.mp4": "present"}
    assert [upload.path for upload in uploads.list()] == ["sub/a.mp4"]


def test_nothing_is_written_through_a_link_out_of_the_uploads(
    tmp_path: Path, uploads: UploadStore
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.mp4").write_bytes(b"theirs")
    (Path(uploads.url) / "north").symlink_to(outside)
    (Path(uploads.url) / "south").mkdir()
    (Path(uploads.url) / "south" / "a.mp4").symlink_to(outside / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(b"one")
    for shard, outcome in (("north", "refused"), ("north/1", "refused"), ("south", "copied")):
        found = _outcomes([tmp_path / "a.mp4"], uploads, shard=shard, replace=True)
        assert found == {f"{shard}/a.mp4": outcome}
    assert [path.name for path in outside.iterdir()] == ["a.mp4"]
    assert (outside / "a.mp4").read_bytes() == b"theirs"
    assert not (Path(uploads.url) / "south" / "a.mp4").is_symlink()


def test_links_in_a_folder_that_is_brought_in_show_nothing_outside(
    tmp_path: Path, uploads: UploadStore
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    (arrived / "a.mp4").symlink_to(tmp_path / "secret")
    (arrived / "b.mp4").write_bytes(b"b")
    os.mkfifo(arrived / "c.mp4")
    assert _outcomes([arrived], uploads) == {
        "a.mp4": "refused",
        "b.mp4": "copied",
        "c.mp4": "missing",
    }
    assert [upload.path for upload in uploads.list()] == ["b.mp4"]


def test_a_file_that_a_person_names_may_be_a_link(tmp_path: Path, uploads: UploadStore) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "blob").write_bytes(b"one")
    (tmp_path / "a.mp4").symlink_to(tmp_path / "deep" / "blob")
    assert _outcomes([tmp_path / "a.mp4"], uploads) == {"a.mp4": "copied"}
    assert (Path(uploads.url) / "a.mp4").read_bytes() == b"one"


def test_uploads_are_made_for_others_as_the_umask_says(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"one")
    code = """if True:
        import os, sys
        from pathlib import Path
        from siglip_pipeline.uploads.ingest import bring_in
        from siglip_pipeline.files.private_files import keep_files_private
        from siglip_pipeline.uploads.upload_store import UploadStore
        os.umask(0o027)
        keep_files_private()
        [done] = bring_in([Path(sys.argv[1])], UploadStore(sys.argv[2]), shard="day")
        assert done.outcome == "copied"
    """
    folder = tmp_path / "uploads"
    command = [sys.executable, "-c", code, str(tmp_path / "a.mp4"), str(folder)]
    subprocess.run(command, check=True, timeout=60)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, *sorted(folder.rglob("*")))]
    assert [oct(mode) for mode in modes] == ["0o750", "0o750", "0o640"]

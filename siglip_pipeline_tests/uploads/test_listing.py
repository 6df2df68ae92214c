"""What a listing leaves, takes up and refuses, and what it knows of each upload."""

import errno
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from siglip_pipeline.records import Refused, Upload
from siglip_pipeline.uploads import listing
from siglip_pipeline.uploads.listing import (
    local_uploads,
    reason_to_ignore,
    remote_upload,
    remote_uploads,
)

NOW = 2e9
LOGGER = "siglip_pipeline.uploads.upload_store"


def _clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr("siglip_pipeline.uploads.listing.time.time", lambda: now)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, None) for name in ("a.mp4", "a", "a.b.MOV", "part", "tmp.mp4", "a~b.mp4", "$~a")),
        *((f"a{suffix}", "temporary") for suffix in sorted(listing.TEMPORARY_SUFFIXES)),
        *((name, "temporary") for name in ("x.PART", "film.mp4.tmp", "a.mp4~", "~$a.mp4")),
        *(
            (f"a{suffix}", f"{suffix} is text that travels with videos")
            for suffix in sorted(listing.SIDECAR_SUFFIXES)
        ),
        ("a.SRT", ".srt is text that travels with videos"),
        *((name, "hidden") for name in (".a.mp4", ".part", ".txt")),
    ],
)
def test_files_that_are_no_uploads(name: str, reason: str | None) -> None:
    assert reason_to_ignore(name, is_folder=False) == reason
    assert reason_to_ignore(name, is_folder=True) == (reason if reason == "hidden" else None)


def _remote(
    found: Mapping[str, dict[str, Any]], settle_seconds: float = 0
) -> list[tuple[str, str]]:
    """Paths, each with the reason why it is refused, if it is."""
    listed = remote_uploads(found, "bucket/in/", settle_seconds=settle_seconds)
    return [(one.path, one.reason if isinstance(one, Refused) else "") for one in listed]


def test_only_files_below_the_root_are_taken_up(caplog: pytest.LogCaptureFixture) -> None:
    names = ["a.mp4", "b/c.mp4", "b/.d/e.mp4", ".f/g/h.mp4", "b/i.part", "", "j//k.mp4", "l/"]
    found: dict[str, dict[str, Any]] = {f"bucket/in/{name}": {} for name in names}
    found |= {"bucket/in": {}, "bucket/other.mp4": {}}
    types = {"folder.mp4": "directory", "link.mp4": "link", "pipe.mp4": "other", "m.mp4": "file"}
    found |= {f"bucket/in/{name}": {"type": kind} for name, kind in types.items()}
    with caplog.at_level(logging.DEBUG, LOGGER):
        listed = _remote(found)
    odd = "a folder in its name is empty, . or ..; rename it"
    assert listed == [
        ("a.mp4", ""),
        ("b/c.mp4", ""),
        ("j//k.mp4", odd),
        ("l/", odd),
        ("m.mp4", ""),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "uploads: 'b/.d/e.mp4' ignored: hidden",
        "uploads: '.f/g/h.mp4' ignored: hidden",
        "uploads: 'b/i.part' ignored: temporary",
    ]


def test_a_remote_file_is_left_until_it_has_settled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless its time is unknown, or in the future, which is of another clock."""
    _clock(monkeypatch, NOW)
    ages = {"now": 0, "young": 9, "settled": 10, "future": -1}
    found = {f"bucket/in/{name}": {"mtime": NOW - age} for name, age in ages.items()}
    with caplog.at_level(logging.DEBUG, LOGGER):
        listed = _remote(found | {"bucket/in/unknown": {}}, settle_seconds=10)
    assert [path for path, _ in listed] == ["settled", "future", "unknown"]
    assert [record.getMessage() for record in caplog.records] == [
        "uploads: 'now' left for later: changed 0.0 s ago",
        "uploads: 'young' left for later: changed 9.0 s ago",
    ]


@pytest.mark.parametrize(
    ("entry", "modified_at"),
    [
        ({}, None),
        ({"mtime": 5.5}, 5.5),
        ({"mtime": 0}, 0),
        ({"LastModified": None, "created": 7}, 7),
        ({"created": 1, "last_modified": 2, "updated": 3, "mtime": 4, "LastModified": 5}, 5),
        ({"created": 1, "last_modified": 2, "updated": 3, "mtime": 4}, 4),
        ({"created": 1, "last_modified": 2, "updated": 3}, 3),
        ({"created": 1, "last_modified": 2}, 2),
        ({"updated": "1970-01-01T00:01:00Z"}, 60),
        ({"updated": "1970-01-01T00:01:00"}, 60),
        ({"updated": "yesterday"}, None),
        ({"LastModified": datetime(1970, 1, 1, 0, 1, tzinfo=UTC)}, 60),
        ({"LastModified": datetime(1970, 1, 1, 0, 1)}, 60),
        ({"LastModified": datetime(1970, 1, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, 60),
    ],
)
def test_the_time_of_a_remote_file(entry: dict[str, Any], modified_at: float | None) -> None:
    assert remote_upload("a", entry) == Upload(path="a", size_bytes=0, modified_at=modified_at)


@pytest.mark.parametrize(
    ("entry", "size_bytes", "etag"),
    [
        ({"size": 7, "ETag": '"ab"'}, 7, "ab"),
        ({"size": "7", "etag": "ab"}, 7, "ab"),
        ({"size": None, "ETag": "", "etag": 12}, 0, "12"),
        ({"size": 1, "ETag": '"ab"', "etag": '"cd"'}, 1, "ab"),
    ],
)
def test_size_and_tag_of_a_remote_file(entry: dict[str, Any], size_bytes: int, etag: str) -> None:
    assert remote_upload("a", entry) == Upload(
        path="a", size_bytes=size_bytes, modified_at=None, etag=etag
    )


def test_a_local_file_is_left_until_it_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its time is the later one of content and status, of those that are not in the future."""
    file = tmp_path / "a.mp4"
    file.write_bytes(b"123")

    def is_listed(now: float, settle_seconds: float) -> bool:
        _clock(monkeypatch, now)
        return bool([*local_uploads(tmp_path, settle_seconds=settle_seconds)])

    with caplog.at_level(logging.DEBUG, LOGGER):
        for content_age in (-50, 0, 50):  # relative to the status, whose time is the system's
            status_at = file.stat().st_ctime
            os.utime(file, (status_at - content_age,) * 2)
            status_at = file.stat().st_ctime
            latest = max(status_at, file.stat().st_mtime)
            assert is_listed(latest + 64, 63)
            assert is_listed(latest + 64, latest + 64 - latest)
            assert not is_listed(latest + 64, 65)
            assert is_listed(status_at - 100, 1000), "both times are of a clock that was ahead"
        assert not is_listed(status_at, 1), "it has changed at this moment"
        os.utime(file, (status_at + 1000,) * 2)
        status_at = file.stat().st_ctime
        assert not is_listed(status_at + 30, 40)
        assert is_listed(status_at + 50, 40), "a time in the future does not count"
    assert "uploads: 'a.mp4' left for later: changed 64.0 s ago" in caplog.messages


def test_what_is_refused_in_a_folder_is_named_with_its_reason(tmp_path: Path) -> None:
    root, outside = tmp_path / "in", tmp_path / "in-other"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.mp4").write_bytes(b"1")
    (root / "a.mp4").symlink_to(outside / "a.mp4")
    (root / "sub" / "b").symlink_to(outside)
    (root / "sub" / "c.mp4").symlink_to("nothing")
    os.mkfifo(root / "d.mp4")
    leaves = f"a symlink that leaves {root}; put the file itself there"
    listed = [*local_uploads(root, settle_seconds=0)]
    assert {one.path: one.reason for one in listed if isinstance(one, Refused)} == {
        "a.mp4": leaves,
        "sub/b": leaves,
        "sub/c.mp4": "a symlink to nothing",
        "d.mp4": "not a regular file",
    }
    assert len(listed) == 4


def test_a_folder_that_cannot_be_read_is_refused_and_the_rest_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is the one that was asked for."""
    for path in ("a/locked/b.mp4", "a/c.mp4", "d.mp4"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"1")
    scan = os.scandir

    def refusing(folder: str) -> Any:
        if Path(folder).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr("siglip_pipeline.uploads.listing.os.scandir", refusing)
    listed = [*local_uploads(tmp_path, settle_seconds=0)]
    refused = Refused(path="a/locked", reason="this folder cannot be read: Permission denied")
    assert refused in listed
    assert sorted(one.path for one in listed) == ["a/c.mp4", "a/locked", "d.mp4"]
    for folder, shard in ((tmp_path / "a" / "locked", None), (tmp_path, "a/locked")):
        with pytest.raises(PermissionError):
            list(local_uploads(folder, settle_seconds=0, shard=shard))


def test_a_file_that_is_deleted_during_the_walk_is_left(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"1")
    walk = local_uploads(tmp_path, settle_seconds=0)
    first = next(walk)
    for file in tmp_path.iterdir():
        file.unlink()
    assert first.path in {"a.mp4", "b.mp4"}
    assert [*walk] == []


def test_a_shard_is_walked_alone_and_must_be_there(tmp_path: Path) -> None:
    for path in ("s/a.mp4", "s/t/b.mp4", "u/c.mp4", "d.mp4"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    found = {one.path: one for one in local_uploads(tmp_path, settle_seconds=0, shard="s")}
    assert {*found} == {"s/a.mp4", "s/t/b.mp4"}
    status = (tmp_path / "s/a.mp4").stat()
    assert found["s/a.mp4"] == Upload(
        path="s/a.mp4",
        size_bytes=7,
        modified_at=status.st_mtime,
        changed_at=status.st_ctime,
        inode=status.st_ino,
    )
    with pytest.raises(FileNotFoundError):
        list(local_uploads(tmp_path, settle_seconds=0, shard="gone"))

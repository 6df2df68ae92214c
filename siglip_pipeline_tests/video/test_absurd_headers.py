"""Rates, durations and texts that make no sense cost nothing: frames and times are the stream's."""

import struct
from pathlib import Path

import numpy as np
import pytest

from siglip_pipeline_tests.video.ffmpeg_reference import Indexed, ffmpeg, indexed_many

LATIN = b"\xe9\xff\xc0\x80\xfe\xe4\xf6\xfc"
"""No UTF-8."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("plain")
    files = {suffix: folder / f"plain.{suffix}" for suffix in ("mp4", "mkv", "avi")}
    arguments: list[str | Path] = ["-f", "lavfi", "-i", "testsrc2=s=160x128:r=10:d=2"]
    for path in files.values():
        arguments += ["-metadata", "title=XXXXXXXX", "-metadata:s:v", "handler_name=XXXXXXXX", path]
    ffmpeg(*arguments)
    return {suffix: path.read_bytes() for suffix, path in files.items()}


def patched(raw: bytes, after: bytes, skip: int, value: bytes) -> bytes:
    at = raw.index(after) + len(after) + skip
    return raw[:at] + value + raw[at + len(value) :]


def assert_times(files: dict[str, tuple[bytes, float]], folder: Path) -> None:
    """Each file has its 20 frames, so many seconds apart."""
    paths = [folder / name for name in files]
    for path in paths:
        path.write_bytes(files[path.name][0])
    for name, out in indexed_many(paths, folder).items():
        assert isinstance(out, Indexed), out
        assert out.seconds_N == pytest.approx(np.arange(20) * files[name][1], rel=1e-3), name
        assert out.report.warnings == ()


def test_rates(plain: dict[str, bytes], tmp_path: Path) -> None:
    """Scale and rate of AVI, which give the time base, and what else states a rate."""
    raw = plain["avi"]
    rates = {
        (0, 0): 0.1,
        (1, 0): 0.1,
        (0, 1): 0.1,
        (1, 90_000): 1 / 90_000,
        (1, 1_000_000): 1e-6,
        (2**32 - 1, 1): 2**31 - 1,
    }
    files = {
        f"{scale}-{rate}.avi": (patched(raw, b"strh", 24, struct.pack("<II", scale, rate)), step)
        for (scale, rate), step in rates.items()
    }
    for period in (0, 1, 2**32 - 1):
        files[f"period-{period}.avi"] = patched(raw, b"avih", 4, struct.pack("<I", period)), 0.1
    for duration in (0, 1, 11_111, 2**32 - 1):  # nanoseconds a frame
        value = duration.to_bytes(4)
        files[f"period-{duration}.mkv"] = patched(plain["mkv"], b"\x23\xe3\x83", 1, value), 0.1
    assert_times(files, tmp_path)


def test_durations(plain: dict[str, bytes], tmp_path: Path) -> None:
    mp4 = plain["mp4"]
    largest = b"\xff" * 4
    offsets = {b"mvhd": 16, b"tkhd": 20, b"mdhd": 16, b"elst": 8}
    files = {
        f"{box.decode()}.mp4": (patched(mp4, box, skip, largest), 0.1)
        for box, skip in offsets.items()
    }
    # In 64 bits: version 1 of the header, in boxes that grow by twelve bytes.
    at = mp4.index(b"mdhd")
    head = b"\1\0\0\0" + bytes(16) + mp4[at + 16 : at + 20] + b"\x7f" + b"\xff" * 7
    long = mp4[: at + 4] + head + mp4[at + 24 :]
    for box in (b"moov", b"trak", b"mdia", b"mdhd"):
        where = long.index(box) - 4
        size = int.from_bytes(long[where : where + 4]) + 12
        long = long[:where] + size.to_bytes(4) + long[where + 4 :]
    files["64-bits.mp4"] = long, 0.1
    for duration in ("nan", "inf", "-5", "1e300", "9.3e18"):
        value = struct.pack(">d", float(duration))
        files[f"{duration}.mkv"] = patched(plain["mkv"], b"\x44\x89", 1, value), 0.1
    assert_times(files, tmp_path)


def test_texts(plain: dict[str, bytes], tmp_path: Path) -> None:
    files = {}
    for suffix, raw in plain.items():
        assert b"XXXXXXXX" in raw
        files[f"texts.{suffix}"] = raw.replace(b"XXXXXXXX", LATIN), 0.1
    assert_times(files, tmp_path)

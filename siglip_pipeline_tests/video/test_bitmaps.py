"""Bitmaps with run lengths show what FFmpeg and ImageMagick show, also if they are cut off."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_pipeline.errors import QueryError, VideoError
from siglip_pipeline.video import bitmap as reader
from siglip_pipeline.video.picture_decoder import PictureDecoder
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.stills import scan_picture
from siglip_pipeline_tests.video.test_still_conformance import only, read

COLOURS = np.array([[9, 9, 9], [220, 30, 30], [30, 200, 30], [30, 30, 220]], np.uint8)
RUNS = {
    # From below: a run and a row that ends early; single pixels, padded; a jump; an early end.
    8: "0401 0202 0000  0003 010203 00 0000  0103 0002 0201 0202 0000  0001",
    4: "0411 0222 0000  0003 1230   0000  0133 0002 0201 0222 0000  0001",
}
SHOWN = ["000000", "000220", "300000", "123000", "111122"]


def bitmap(data: bytes, *, bits: int, compression: int, rows: int = 5) -> bytes:
    """A bitmap of six columns and four colours."""
    palette = b"".join(bytes([*colour[::-1], 0]) for colour in COLOURS.tolist())
    header = struct.pack("<IiiHHIIiiII", 40, 6, rows, 1, bits, compression, len(data), 0, 0, 4, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2)])
def test_run_lengths(bits: int, compression: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bitmap(bytes.fromhex(RUNS[bits]), bits=bits, compression=compression))
    numbers_HW = np.array([[int(number) for number in row] for row in SHOWN])
    assert (only(path) == COLOURS[numbers_HW]).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_run_lengths_that_are_cut_off(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    rows = b"".join(
        bytes([6, 17 * (1 + row % 3) if bits == 4 else 1 + row % 3, 0, 0]) for row in range(40)
    )
    whole = bitmap(rows + b"\0\1", bits=bits, compression=8 // bits, rows=40)
    path.write_bytes(whole)
    wanted = only(path)
    path.write_bytes(whole[: -2 - 4 * 10])
    scanned, (pixels,) = read(path)
    assert scanned.warnings == ("the picture is damaged or cut off: 75% of it could be read",)
    assert (pixels[10:] == wanted[10:]).all()
    assert (pixels[:10] == COLOURS[0]).all()
    path.write_bytes(whole[: -2 - 4 * 30])
    with pytest.raises(VideoError, match="its runs are cut off"):
        scan_picture(MediaSource(path.name, path=path))


def expanded(data: bytes, width: int, height: int, bits: int) -> tuple[bytes, bool]:
    """The numbers of the pixels, and whether the runs go to the end; command by command."""
    shown = bytearray(width * height)
    numbers = data if bits == 8 else bytes(n for byte in data for n in (byte >> 4, byte & 15))
    x = y = at = 0
    while y < height and at + 2 <= len(data):
        count, value = data[at : at + 2]
        at += 2
        run = (numbers[(at - 1) * 8 // bits :][: 8 // bits] * count)[:count]
        if (count, value) == (0, 0):
            x, y = 0, y + 1
        elif (count, value) == (0, 1):
            return bytes(shown), True
        elif (count, value) == (0, 2):
            right, up = data[at : at + 2] if at + 2 <= len(data) else (0, 0)
            x, y, at = x + right, y + up, at + 2
        elif count == 0:
            run = numbers[at * 8 // bits :][:value]
            at += (value * bits + 15) // 16 * 2
        for number in run[: max(0, width - x)]:
            shown[y * width + x] = number
            x += 1
    return bytes(shown), y >= height or (y == height - 1 and x >= width)


@given(
    data=st.lists(
        st.one_of(
            st.tuples(st.just(0), st.integers(0, 2)).map(bytes),
            st.tuples(st.just(0), st.integers(3, 9)).map(bytes),
            st.tuples(st.integers(1, 9), st.integers(0, 255)).map(bytes),
            st.binary(max_size=9),
        )
    ).map(b"".join),
    width=st.integers(1, 40),
    height=st.integers(1, 12),
    bits=st.sampled_from((8, 4)),
    block=st.sampled_from((1, 3, 2**18)),
)
def test_any_runs(data: bytes, width: int, height: int, bits: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_BLOCK", block)
        numbers_N, is_whole = reader._expanded(data, width, height, bits)
    assert (numbers_N.tobytes(), is_whole) == expanded(data, width, height, bits)


@pytest.mark.parametrize("data", [b"\1\x21" * 5_000_000, b"\0\3\x21\x43\x21\0" * 1_700_000])
@pytest.mark.parametrize("bits", [8, 4])
def test_many_short_runs_take_no_time(data: bytes, bits: int) -> None:
    began = time.process_time()
    _, is_whole = reader._expanded(data, 10_000, 10_000, bits)
    assert not is_whole
    assert time.process_time() - began < 3


def test_a_compression_that_is_not_read_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(bitmap(bytes(60), bits=8, compression=4))
    told = "a BMP with compression 4, which is not read here: save it as PNG"
    with pytest.raises(VideoError, match=f"it is {told}"):
        scan_picture(MediaSource(path.name, path=path))
    with PictureDecoder(children=1) as queries, pytest.raises(QueryError, match=told):
        queries.decode(path.read_bytes())

"""Small files that demand much memory or time are refused or limited, and delay no others."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from siglip_pipeline.errors import VideoError
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_many
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.png_chunks import png_of
from siglip_pipeline_tests.video.rendering import render

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("own_decoders")]


def png(path: Path, width: int, height: int, *more: tuple[bytes, bytes]) -> None:
    """A PNG of zeros, or its beginning where it is too large, and more chunks before these."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(6)
    rows = b""
    if width * height <= 200_000_000:
        rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height))
    pixels = rows + packer.flush()
    path.write_bytes(png_of((b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")))


def text_bomb(path: Path) -> None:
    """A comment of 100 MB beside a picture of one pixel."""
    comment = zlib.compress(bytes(100_000_000))
    png(path, 1, 1, (b"zTXt", b"Comment\0\0" + comment))


def gif(path: Path, side: int, frames: int) -> None:
    """Pictures of one pixel on a huge canvas, each of which is drawn whole."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    control = b"\x21\xf9\x04\0\x05\0\0\0"
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    path.write_bytes(head + (control + picture) * frames + b";")


def avi_of_giant_pictures(path: Path) -> None:
    """Its headers promise 100,000 pixels on a side."""
    data = bytearray(render(path, codec="mpeg4", frames=5).read_bytes())
    size = struct.pack("<II", 160, 96)
    at = data.find(size)
    while at >= 0:
        data[at : at + 8] = struct.pack("<II", 100_000, 100_000)
        at = data.find(size, at + 8)
    path.write_bytes(data)


def mp4_of_a_thousand_tracks(path: Path) -> None:
    black = np.zeros((48, 32), np.uint8)
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=5) for _ in range(1000)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            stream.codec_context.thread_count = 1
        for stream in streams:
            frame = av.VideoFrame.from_ndarray(black, format="yuv420p")
            frame.pts = 0
            for packet in [*stream.encode(frame), *stream.encode()]:
                container.mux(packet)


def mkv_of_a_lying_duration(path: Path) -> None:
    """Ten frames that last, by the header, for 10^300 milliseconds."""
    data = bytearray(render(path, frames=10).read_bytes())
    at = data.find(b"\x44\x89\x88")  # Duration, 8 bytes
    assert at > 0
    data[at + 3 : at + 11] = struct.pack(">d", 1e300)
    path.write_bytes(data)


def mkv_of_years(path: Path) -> None:
    """Ten frames, three years apart: a frame a second would be 900 million."""
    render(path, frames=10, pts=[number * 100_000_000 * 25 for number in range(10)])


FILES: dict[str, tuple[Callable[[Path], object], str | int]] = {
    "bomb.png": (lambda path: png(path, 30_000, 30_000), "30000x30000 pixels; at most"),
    "wide.png": (lambda path: png(path, 2**31 - 1, 1), "pixels; at most"),
    "large.png": (lambda path: png(path, 10_000, 10_000), 1),  # 100 megapixels are allowed
    "text.png": (text_bomb, 1),  # its comment is ignored
    "canvas.gif": (lambda path: gif(path, 11_000, 5000), "make a video of it"),
    "bomb.gif": (lambda path: gif(path, 65_535, 2), "65535x65535 pixels; at most"),
    "giant.avi": (avi_of_giant_pictures, 1),  # headers are not believed
    "tracks.mp4": (mp4_of_a_thousand_tracks, 1),
    "lying.mkv": (mkv_of_a_lying_duration, 1),
    "years.mkv": (mkv_of_years, 10),
    "good.mp4": (lambda path: render(path, frames=10), 1),
}
"""How each is made, and the number of frames or part of the reason that comes out."""


def test_each_ends_within_its_bounds(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    for name, (make, _) in FILES.items():
        make(folder / name)
        assert (folder / name).stat().st_size < 2_000_000, "a bomb is small"
    uploads, frames = UploadStore(folder, settle_seconds=0), FrameStore(tmp_path / "frames")
    memory_mib = 1500
    results: dict[str, FrameReport | VideoError] = {
        upload.path: result
        for upload, result in extract_many(
            uploads.list(),
            uploads,
            frames,
            sampling="fps:1",
            options=DecodeOptions(stall_seconds=20, memory_mib=memory_mib),
            workers=2,
        )
    }
    for name, (_, expected) in FILES.items():
        result = results[name]
        if isinstance(expected, str):
            assert isinstance(result, VideoError), (name, result)
            assert expected in result.reason, (name, result.reason)
            assert not frames.exists(name)
        else:
            assert isinstance(result, FrameReport), (name, result)
            assert result.frames == expected, name
            assert result.peak_memory_bytes < memory_mib * 2**20


@pytest.mark.faults
def test_a_frame_that_takes_more_memory_than_allowed_is_ended(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    Image.new("RGB", (11_000, 11_000)).save(folder / "huge.webp", lossless=True)
    uploads, frames = UploadStore(folder, settle_seconds=0), FrameStore(tmp_path / "frames")
    options = DecodeOptions(memory_mib=256)
    ((_, result),) = extract_many(
        uploads.list(), uploads, frames, sampling="fps:1", options=options, workers=1
    )
    assert isinstance(result, VideoError)
    assert "256 MiB of memory" in result.reason

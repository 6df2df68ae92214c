"""An interlaced frame is the same picture whichever frames are decoded with it."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from siglip_pipeline.video.decode import DecodeCounts, decode_frames
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import Scan
from siglip_pipeline.video.scene_sampling import decode_scenes
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.ffmpeg_reference import ffmpeg

FIELDS = "testsrc2=s={size}:r=50:d=1.2,interlace=scan={first},format={pixel_format}"
ILDCT = ("-flags", "+ildct+ilme", "-top", "1")
KINDS = {
    "dv.dv": ("dvvideo", "720x576", "bff", "yuv420p", ()),
    "prores.mov": ("prores_ks", "160x128", "tff", "yuv422p10", ("-flags", "+ildct", "-top", "1")),
    "intra.mxf": ("mpeg2video", "160x128", "tff", "yuv422p", ("-g", "1", *ILDCT)),
    "v210.mov": ("v210", "160x128", "tff", "yuv422p10", ("-field_order", "tt")),
    "broadcast.mpg": ("mpeg2video", "160x128", "tff", "yuv420p", ("-g", "12", "-bf", "2", *ILDCT)),
    # Decoded from the key frame before it, the last but one frame does not come out.
    "open.avi": ("mpeg4", "160x128", "tff", "yuv420p", ("-g", "12", "-bf", "2", *ILDCT)),
    "h264.ts": ("libx264", "160x128", "tff", "yuv420p", ("-x264opts", "tff=1:keyint=12:bframes=2")),
    "h264.mp4": (
        *("libx264", "160x128", "tff", "yuv420p"),
        ("-x264opts", "tff=1:keyint=9:bframes=3:b-pyramid=normal:open-gop=1"),
    ),
}


def made(name: str, folder: Path) -> Path:
    codec, size, first, pixel_format, options = KINDS[name]
    fields = FIELDS.format(size=size, first=first, pixel_format=pixel_format)
    ffmpeg("-f", "lavfi", "-i", fields, "-c:v", codec, "-threads", "1", *options, folder / name)
    return folder / name


def decoded(source: MediaSource, scan: Scan, *targets: int) -> dict[int, NDArray[np.uint8]]:
    plan = plan_decode(scan.packets, np.array(targets))
    return {
        one.frame_index: np.asarray(one.frame.to_ndarray(format="gray"))
        for one in decode_frames(source, scan, plan, deinterlace=True)
    }


def assert_same(path: Path) -> None:
    source = MediaSource(path.name, path=path)
    scan = index_frames(source)
    count = scan.packets.pts_N.size
    everything = decoded(source, scan, *range(count))
    keys = np.flatnonzero(scan.packets.key_N)[1:3].tolist()
    last = count - 1
    for targets in ([last // 2], [last // 2 + 1], keys, [last - 1], [last], range(0, count, 7)):
        alone = decoded(source, scan, *targets)
        assert [*alone] == [*targets]
        for number, picture in alone.items():
            assert np.array_equal(picture, everything[number]), number
    scenes = list(decode_scenes(source, scan, counts=DecodeCounts()))
    assert [one.pts for one in scenes] == [scan.packets.pts_N[one.frame_index] for one in scenes]
    assert sorted({one.frame_index for one in scenes}) == [one.frame_index for one in scenes]
    for one in scenes:
        picture = np.asarray(one.frame.to_ndarray(format="gray"), np.uint8)
        assert np.array_equal(picture, everything[one.frame_index]), one.frame_index


@pytest.mark.parametrize("name", KINDS)
def test_a_frame_is_the_same_whatever_is_decoded(name: str, tmp_path: Path) -> None:
    path = made(name, tmp_path)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.interlaced_frame
    assert_same(path)


def test_a_film_that_becomes_interlaced(tmp_path: Path) -> None:
    parts = []
    for name, options in (
        ("plain", "keyint=12:bframes=2"),
        ("fields", "tff=1:keyint=12:bframes=2"),
    ):
        fields = FIELDS.format(size="160x128", first="tff", pixel_format="yuv420p")
        pictures = fields if name == "fields" else "testsrc2=s=160x128:r=25:d=1.2"
        coding = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264opts", options)
        ffmpeg("-f", "lavfi", "-i", pictures, *coding, "-threads", "1", tmp_path / f"{name}.ts")
        parts.append((tmp_path / f"{name}.ts").read_bytes())
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    assert_same(path)

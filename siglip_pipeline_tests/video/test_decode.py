"""Planned decoding gives the frames of a full sequential decode, byte by byte, with less work."""

import functools
import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_pipeline.video.decode import DecodeCounts, DecodedFrame, decode_frames
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.frame_selection import select_frames
from siglip_pipeline.video.plan import Step, plan_decode
from siglip_pipeline.video.sampling import Sampling
from siglip_pipeline.video.scan import Scan, scan
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.rendering import numbered_picture, read_number, render

DATA = Path(__file__).parent.parent / "data" / "videos"
REAL = sorted(path.name for path in DATA.iterdir() if path.suffix in (".mp4", ".mkv", ".webm"))

RENDERED: dict[str, dict[str, Any]] = {
    "h264_long_gop.mp4": {"frames": 300, "options": {"g": "250"}},
    "h264_pyramid.mp4": {
        "frames": 150,
        "options": {"g": "100", "x264-params": "bframes=8:b-adapt=0:b-pyramid=normal"},
    },
    "h264_open_gop.mp4": {
        "frames": 150,
        "options": {"x264-params": "keyint=20:min-keyint=20:open-gop=1:bframes=3:scenecut=0"},
    },
    "h264_intra_refresh.mkv": {
        "frames": 120,
        "options": {"x264-params": "keyint=20:intra-refresh=1:bframes=0"},
    },
    "h264_interlaced.ts": {"frames": 60, "options": {"x264-params": "tff=1:keyint=25"}},
    "h264_no_b.mp4": {"frames": 90, "options": {"g": "30", "bf": "0"}},
    "hevc.mp4": {
        "codec": "libx265",
        "frames": 120,
        "options": {"x265-params": "keyint=40:bframes=4:b-pyramid=1:log-level=none"},
    },
    "hevc_open_gop.mkv": {
        "codec": "libx265",
        "frames": 100,
        "options": {"x265-params": "keyint=20:min-keyint=20:open-gop=1:bframes=4:log-level=none"},
    },
    "vp8.webm": {"codec": "libvpx", "frames": 80, "options": {"g": "40", "deadline": "realtime"}},
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "frames": 80,
        "options": {"g": "40", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "16"},
    },
    "av1.mp4": {"codec": "libsvtav1", "frames": 80, "options": {"preset": "12", "g": "40"}},
    "mpeg4.avi": {"codec": "mpeg4", "frames": 90, "options": {"g": "30", "bf": "2"}},
    "mpeg4.mp4": {"codec": "mpeg4", "frames": 90, "options": {"g": "30", "bf": "2"}},
    "mpeg2.ts": {"codec": "mpeg2video", "frames": 90, "options": {"g": "15", "bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "frames": 90, "options": {"g": "15", "bf": "2"}},
}
SAMPLINGS = ["fps:1", "fps:3.7", "every:7", "keyframes", "fps:1/60"]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    for name, options in RENDERED.items():
        render(folder / name, **options)
    return folder


def digest(frame: VideoFrame) -> str:
    """Of the visible pixels, in the decoder's own format."""
    pixels = np.ascontiguousarray(frame.to_ndarray())
    return f"{frame.format.name} {hashlib.sha256(pixels.tobytes()).hexdigest()}"


@functools.cache
def sequential(path: Path, stream_index: int) -> dict[int, str]:
    """PTS to pixels, by PyAV's own loop over everything; once for all tests of a file."""
    with av.open(str(path)) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, av.VideoStream)
        frames: dict[int, str] = {}
        for frame in container.decode(stream):
            assert isinstance(frame, VideoFrame)
            assert frame.pts is not None
            frames.setdefault(frame.pts, digest(frame))
    return frames


def planned(
    path: Path, sampling: str, *, threads: int = 1
) -> tuple[Scan, list[DecodedFrame], list[str], DecodeCounts]:
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    packets = scanned.packets
    targets = select_frames(
        Sampling.parse(sampling),
        packets.pts_N,
        time_base=scanned.time_base,
        end_pts=packets.end_pts,
        key_N=packets.key_N,
    )
    counts = DecodeCounts()
    plan = plan_decode(packets, targets)
    frames = list(decode_frames(source, scanned, plan, counts=counts, threads=threads))
    assert [frame.frame_index for frame in frames] == targets.tolist()
    return scanned, frames, [digest(frame.frame) for frame in frames], counts


def assert_exact(path: Path, sampling: str, *, threads: int = 1) -> DecodeCounts:
    scanned, frames, digests, counts = planned(path, sampling, threads=threads)
    truth = sequential(path, scanned.stream_index)
    start_pts = min(truth)
    for frame, pixels in zip(frames, digests, strict=True):
        assert pixels == truth[frame.pts], f"other pixels at PTS {frame.pts}"
        assert frame.time_seconds == float((frame.pts - start_pts) * scanned.time_base)
        assert sorted(truth)[frame.frame_index] == frame.pts
    return counts


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", RENDERED)
def test_rendered_videos_come_out_exactly(rendered: Path, name: str, sampling: str) -> None:
    assert_exact(rendered / name, sampling)


ALL_CALLED_KEYS: dict[str, tuple[str, str]] = {
    "mpeg4": ("mov", "yuv420p"),
    "msmpeg4": ("mov", "yuv420p"),
    "qtrle": ("mov", "rgb24"),
    "cinepak": ("mov", "rgb24"),
    "flv": ("avi", "yuv420p"),
    "wmv2": ("avi", "yuv420p"),
}


def call_all_frames_keys(path: Path) -> None:
    """Mark all frames of a QuickTime or an AVI as key frames."""
    content = bytearray(path.read_bytes().replace(b"stss", b"free"))
    for entry in range(content.rfind(b"idx1") + 8, len(content), 16) if b"idx1" in content else ():
        content[entry + 4] |= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("codec", ALL_CALLED_KEYS)
def test_frames_that_are_wrongly_called_key_frames_come_out_exactly(
    codec: str, tmp_path: Path
) -> None:
    container, pixel_format = ALL_CALLED_KEYS[codec]
    still = numbered_picture(0)
    pictures = []
    for number in range(60):
        picture = still.copy()  # what does not change is not coded again
        picture[:8] = numbered_picture(number)[:8]
        picture[10 + number, 8:40] = 255
        pictures.append(picture)
    path = render(
        tmp_path / f"film.{container}",
        codec=codec,
        pictures=pictures,
        rate=10,
        pixel_format=pixel_format,
        options={"g": "60"},
    )
    call_all_frames_keys(path)
    assert scan(MediaSource(path.name, path=path)).packets.key_P.all()
    for sampling in ("fps:1", "every:7"):
        assert_exact(path, sampling)


def test_pictures_that_are_refreshed_in_parts_come_out_exactly(tmp_path: Path) -> None:
    """Recovery points are called key frames; the decoder may be wrong about when it has recovered.

    It never shows what stands at such a point if it begins there.
    """
    pictures = [numbered_picture(n) // (1 + n % 2) for n in range(100)]
    path = render(
        tmp_path / "refreshed.ts",
        pictures=pictures,
        options={"x264-params": "keyint=20:intra-refresh=1:bframes=0:repeat-headers=1"},
    )
    scanned = scan(MediaSource(path.name, path=path))
    assert np.flatnonzero(scanned.packets.key_N).tolist() == [0, 20, 40, 60, 80]
    truth = sequential(path, scanned.stream_index)
    for target in range(21, 100, 6):
        plan = plan_decode(scanned.packets, np.array([target]))
        (decoded,) = decode_frames(MediaSource(path.name, path=path), scanned, plan)
        assert decoded.frame_index == target
        assert digest(decoded.frame) == truth[decoded.pts], target


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", REAL)
def test_real_videos_come_out_exactly(name: str, sampling: str) -> None:
    assert_exact(DATA / name, sampling)


@pytest.mark.parametrize("sampling", ["fps:1", "every:7"])
@pytest.mark.parametrize("name", RENDERED)
def test_decoder_threads_change_nothing(rendered: Path, name: str, sampling: str) -> None:
    counts = assert_exact(rendered / name, sampling, threads=4)
    if name in ("h264_pyramid.mp4", "hevc.mp4"):
        alone = planned(rendered / name, sampling)[3]
        assert counts.frames_decoded == alone.frames_decoded


@settings(max_examples=25)
@given(wanted=st.sets(st.integers(0, 149), min_size=1, max_size=12), data=st.data())
def test_any_set_of_targets_comes_out_exactly(
    rendered: Path, wanted: set[int], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["h264_pyramid.mp4", "h264_open_gop.mp4"]))
    source = MediaSource(name, path=rendered / name)
    scanned = scan(source)
    truth = sequential(rendered / name, scanned.stream_index)
    targets = np.array(sorted(wanted), np.int64)
    counts = DecodeCounts()
    plan = plan_decode(scanned.packets, targets)
    out = [
        (frame.frame_index, digest(frame.frame))
        for frame in decode_frames(source, scanned, plan, counts=counts)
    ]
    ordered = sorted(truth)
    assert out == [(index, truth[ordered[index]]) for index in sorted(wanted)]
    assert counts.full_passes == 0


def reference_packets(path: Path) -> list[bool]:
    """For each H.264 packet of an MP4, whether other frames may refer to it (nal_ref_idc > 0)."""
    flags = []
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            data, position, is_reference = bytes(packet), 0, False
            while position + 5 <= len(data):
                length = int.from_bytes(data[position : position + 4], "big")
                header = data[position + 4]
                if header & 31 in (1, 5):
                    is_reference |= header >> 5 & 3 > 0
                position += 4 + length
            if data:
                flags.append(is_reference)
    return flags


@pytest.mark.parametrize("sampling", ["fps:1", "every:40"])
@pytest.mark.parametrize("name", ["h264_long_gop.mp4", "h264_pyramid.mp4", "h264_no_b.mp4"])
def test_nothing_is_decoded_that_is_neither_reference_nor_target(
    rendered: Path, name: str, sampling: str
) -> None:
    scanned, frames, _, counts = planned(rendered / name, sampling)
    plan = plan_decode(scanned.packets, np.array([f.frame_index for f in frames], np.int64))
    references = np.array(reference_packets(rendered / name))
    needed = (plan.steps_P == Step.TARGET) | ((plan.steps_P == Step.REFERENCE) & references)
    assert counts.frames_decoded == np.count_nonzero(needed)
    assert counts.full_passes == 0
    if name == "h264_pyramid.mp4":
        assert counts.frames_decoded < 0.45 * len(scanned.packets)


def test_av1_frames_that_nothing_refers_to_are_left_out(rendered: Path) -> None:
    """The decoder confirms which these are: without them all other frames stay the same."""
    path = rendered / "av1.mp4"
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    unreferenced = np.flatnonzero(~scanned.packets.reference_P)
    assert 10 <= unreferenced.size <= 60
    truth = sequential(path, scanned.stream_index)
    others = np.flatnonzero(scanned.packets.reference_P[scanned.packets.packet_N])
    counts = DecodeCounts()
    plan = plan_decode(scanned.packets, others)
    frames = list(decode_frames(source, scanned, plan, counts=counts))
    assert {f.pts: digest(f.frame) for f in frames}.items() <= truth.items()
    assert len(frames) == others.size
    assert counts.frames_decoded == others.size
    assert counts.full_passes == 0


def test_groups_without_a_target_are_left_out(rendered: Path) -> None:
    scanned, _, _, counts = planned(rendered / "h264_no_b.mp4", "fps:1/60")
    assert counts.packets_given == 1
    assert len(scanned.packets) == 90


def test_a_target_that_does_not_come_out_as_planned_is_found_by_decoding_everything(
    rendered: Path,
) -> None:
    path = rendered / "h264_no_b.mp4"
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    plan = plan_decode(scanned.packets, np.array([40], np.int64))
    plan.steps_P[:] = Step.SKIP  # a plan that is wrong about what the target needs
    plan.steps_P[40] = Step.TARGET
    counts = DecodeCounts()
    (frame,) = decode_frames(source, scanned, plan, counts=counts)
    truth = sequential(path, 0)
    assert digest(frame.frame) == truth[sorted(truth)[40]]
    assert counts.full_passes == 1


def test_raw_streams_without_timestamps_are_told_apart_by_order(tmp_path: Path) -> None:
    path = render(tmp_path / "raw.h264", frames=75, options={"g": "25", "bf": "2"})
    scanned, frames, digests, _ = planned(path, "fps:1")
    assert not scanned.packets.timestamps_known
    with av.open(str(path)) as container:
        truth = [digest(frame) for frame in container.decode(video=0)]
    assert [frame.time_seconds for frame in frames] == [0.0, 1.0, 2.0]
    assert digests == [truth[0], truth[25], truth[50]]


@pytest.mark.parametrize("b_frames", [1, 2, 3])
def test_h264_in_avi_is_shown_in_even_steps(tmp_path: Path, b_frames: int) -> None:
    """AVI has the times at which packets are decoded; a frame must not be shown at its packet's."""
    path = render(tmp_path / "h264.avi", frames=100, options={"bf": str(b_frames), "g": "40"})
    scanned = index_frames(MediaSource(path.name, path=path))
    pts_N = scanned.packets.pts_N
    assert (pts_N - pts_N[0]).tolist() == list(range(100))
    assert scanned.packets.end_pts - pts_N[0] == 100
    plan = plan_decode(scanned.packets, np.array([0, 1, 50, 99]))
    found = decode_frames(MediaSource(path.name, path=path), scanned, plan)
    numbers = {
        f.pts - pts_N[0]: read_number(np.asarray(f.frame.to_ndarray(format="rgb24"))) for f in found
    }
    assert numbers == {0: 0, 1: 1, 50: 50, 99: 99}


def test_time_base_arithmetic_does_not_drift(tmp_path: Path) -> None:
    path = render(
        tmp_path / "ntsc.mp4",
        frames=91,
        pts=[1001 * n for n in range(91)],
        time_base=Fraction(1, 30000),
        rate=30,
    )
    _, frames, _, _ = planned(path, "fps:1")
    assert [frame.pts for frame in frames] == [0, 29 * 1001 * 1, 59 * 1001, 89 * 1001]

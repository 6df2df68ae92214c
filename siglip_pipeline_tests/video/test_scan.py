"""Timestamps of every kind are read, and a file that is not a video gives a clear reason."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from siglip_pipeline.errors import VideoError
from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.packet_index import PacketIndex, build_index
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import check_dimensions, scan
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.timeline import UNKNOWN
from siglip_pipeline_tests.video.probing import probe
from siglip_pipeline_tests.video.rendering import numbered_picture, read_number, render

DATA = Path(__file__).parent.parent / "data" / "videos"


def decoded(path: Path) -> tuple[list[float], list[int]]:
    """Seconds and written numbers of all frames, in time order."""
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    everything = np.arange(scanned.packets.pts_N.size)
    frames = list(decode_frames(source, scanned, plan_decode(scanned.packets, everything)))
    assert [frame.frame_index for frame in frames] == everything.tolist()
    numbers = [read_number(np.asarray(f.frame.to_ndarray(format="rgb24"))) for f in frames]
    return [frame.time_seconds for frame in frames], numbers


def test_what_is_known_of_a_plain_video(tmp_path: Path) -> None:
    path = render(tmp_path / "plain.mp4", frames=50, rate=25)
    info = probe(path)
    assert (info.video, info.codec, info.width, info.height) == ("plain.mp4", "h264", 160, 96)
    assert (info.frame_count, info.frame_rate, info.start_pts) == (50, 25.0, 0)
    assert info.duration_seconds == 2.0
    assert info.size_bytes == path.stat().st_size


def test_variable_frame_rate(tmp_path: Path) -> None:
    pts = [0, 40, 45, 1000, 1001, 5000, 5040]
    path = render(tmp_path / "vfr.mkv", frames=7, pts=pts, time_base=Fraction(1, 1000))
    seconds, numbers = decoded(path)
    assert seconds == pytest.approx([p / 1000 for p in pts])
    assert numbers == list(range(7))
    assert probe(path).frame_rate == pytest.approx(6 / 5.04)


@pytest.mark.parametrize("start", [-5, -100, 7, 90_000])
@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv"])
def test_any_start_is_second_zero(tmp_path: Path, start: int, suffix: str) -> None:
    path = render(
        tmp_path / f"start.{suffix}",
        frames=30,
        pts=[start + n for n in range(30)],
        container_options={"avoid_negative_ts": "disabled", "use_editlist": "0"}
        if suffix == "mp4"
        else {"avoid_negative_ts": "disabled"},
    )
    seconds, numbers = decoded(path)
    assert seconds == pytest.approx([n / 25 for n in range(30)], abs=0.0011)
    assert numbers == list(range(30))
    assert probe(path).duration_seconds == pytest.approx(30 / 25, abs=0.002)


def test_a_real_start_other_than_zero() -> None:
    path = DATA / "test_non_zero_start.mp4"
    info = probe(path)
    assert info.start_pts == 127_995
    assert info.duration_seconds == pytest.approx(0.4)


def test_packets_that_an_edit_list_cuts_away_are_no_frames() -> None:
    path = DATA / "discard_first_keyframe.mp4"
    info = probe(path)
    assert info.start_pts == 0
    assert info.frame_count == 25
    assert info.duration_seconds == pytest.approx(1.0)


def test_frames_stored_out_of_time_order(tmp_path: Path) -> None:
    """A muxer wrote timestamps out of order; frames are in time order."""
    pts = [0, 2, 1, 3, 5, 4, 6, 7]
    path = tmp_path / "unordered.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuvj420p"
        for n, p in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(numbered_picture(p), format="rgb24")
            (packet,) = stream.encode(frame.reformat(format="yuvj420p"))
            packet.pts, packet.dts, packet.time_base = p * 40, n * 40 - 400, Fraction(1, 1000)
            packet.stream = stream
            container.mux(packet)
    seconds, numbers = decoded(path)
    assert seconds == pytest.approx([n / 25 for n in range(8)])
    assert numbers == list(range(8))


@pytest.mark.parametrize(
    ("name", "container_format", "container_options"),
    [
        ("live.mkv", "matroska", {"live": "1"}),
        ("fragmented.mp4", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("stream.ts", "mpegts", {}),
        ("video.flv", "flv", {"flvflags": "no_duration_filesize"}),
    ],
)
def test_missing_duration_and_frame_count(
    tmp_path: Path, name: str, container_format: str, container_options: dict[str, str]
) -> None:
    path = render(
        tmp_path / name,
        frames=50,
        options={"g": "12"},
        container_format=container_format,
        container_options=container_options,
    )
    info = probe(path)
    assert info.frame_count == 50
    assert info.duration_seconds == pytest.approx(2.0, abs=0.01)
    assert decoded(path)[1] == list(range(50))


def test_zero_frames_a_second_in_the_header(tmp_path: Path) -> None:
    path = render(tmp_path / "zero.avi", codec="mpeg4", frames=20)
    raw = bytearray(path.read_bytes())
    strh = raw.index(b"strh")
    assert struct.unpack_from("<II", raw, strh + 8 + 20) != (0, 0)
    struct.pack_into("<II", raw, strh + 8 + 20, 0, 0)  # scale and rate of the stream
    struct.pack_into("<I", raw, raw.index(b"avih") + 8, 0)  # microseconds per frame
    path.write_bytes(raw)
    info = probe(path)
    assert info.frame_count == 20
    assert info.duration_seconds > 0
    assert len(decoded(path)[0]) == 20


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def without_moov(path: Path) -> None:
    render(path, frames=20)
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(b"moov") - 4])


def no_packets(path: Path) -> None:
    """A recording that ended before its first fragment was written."""
    render(path, frames=20, container_options={"movflags": "frag_keyframe+empty_moov"})
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(b"moof") - 4])


def cut_after_the_header(path: Path) -> None:
    render(path, codec="mpeg4", frames=20)
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(b"movi") + 4])


def absurd_size(path: Path) -> None:
    render(path, codec="huffyuv", pixel_format="yuv422p", frames=3)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<II", raw, raw.index(b"strf") + 8 + 4, 16_000, 16_000)
    path.write_bytes(raw)


def impossible_size(path: Path) -> None:
    absurd_size(path)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<II", raw, raw.index(b"strf") + 8 + 4, 2**30, 2**30)
    path.write_bytes(raw)


def edited(path: Path, *, seconds: int, media_time: int) -> None:
    """An edit list of one entry that shows so many seconds from a time of the track on."""
    render(path, frames=20)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"elst") + 8
    assert struct.unpack_from(">I", raw, at) == (1,)
    struct.pack_into(">Ii", raw, at + 4, seconds * 1000, media_time)
    path.write_bytes(raw)


def shows_what_comes_after_the_end(path: Path) -> None:
    edited(path, seconds=1, media_time=2**30)


def shows_nothing(path: Path) -> None:
    edited(path, seconds=0, media_time=0)


def shows_a_pause(path: Path) -> None:
    edited(path, seconds=1, media_time=-1)


EDITED_OUT = "its edit list shows none of its frames"


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("beyond.mp4", shows_what_comes_after_the_end, EDITED_OUT),
        ("zero.mp4", shows_nothing, EDITED_OUT),
        ("pause.mp4", shows_a_pause, EDITED_OUT),
        ("empty.mp4", lambda path: path.write_bytes(b""), "empty (0 bytes)"),
        ("notes.mp4", lambda path: path.write_text("Grüße, no video\n" * 400), "this is text"),
        ("zeros.mp4", lambda path: path.write_bytes(bytes(10_000)), "zeros only"),
        (
            "noise.mp4",
            lambda path: path.write_bytes(bytes(range(255, 0, -1)) * 9),
            "neither",
        ),
        ("a.psd", lambda path: path.write_bytes(b"8BPS\0\1".ljust(99)), "a picture to PNG"),
        ("sound.m4a", sound_only, "only sound"),
        ("cut.mp4", without_moov, "index (moov) is missing"),
        ("nothing.mp4", no_packets, "no packets"),
        ("cut.avi", cut_after_the_header, "no packets"),
        ("absurd.avi", absurd_size, "16000x16000 pixels"),
        ("impossible.avi", impossible_size, "no picture size"),
    ],
)
def test_each_bad_file_has_its_own_reason(
    tmp_path: Path, name: str, make: object, reason: str
) -> None:
    path = tmp_path / name
    assert callable(make)
    make(path)
    with pytest.raises(VideoError) as raised:
        probe(path)
    assert reason in raised.value.reason
    assert name not in raised.value.reason


def test_an_empty_stream_leaves_nothing_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its demuxer, which is chosen by the suffix, seeks to before the start of the file."""
    path = tmp_path / "empty.h264"
    path.write_bytes(b"")
    with pytest.raises(VideoError, match=r"the file is empty \(0 bytes\); upload it again"):
        probe(path)
    assert capfd.readouterr().err == ""


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="No such file"):
        probe(tmp_path / "gone.mp4")


def test_names_that_look_like_ffmpeg_protocols(tmp_path: Path) -> None:
    path = render(tmp_path / "concat:a|b 100%.mp4", frames=5)
    assert probe(path).frame_count == 5


@pytest.mark.parametrize(("width", "height"), [(40_000, 10), (30_000, 30_000)])
def test_absurd_dimensions(width: int, height: int) -> None:
    with pytest.raises(VideoError, match=f"{width}x{height}"):
        check_dimensions("a.mp4", width, height)


def pictures(path: Path, sizes: list[tuple[int, int]], bad: int = 0) -> Path:
    """A picture of each size, as JPEG; the first ones are damaged."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
        for n, (width, height) in enumerate(sizes):
            jpeg = io.BytesIO()
            PIL.Image.new("RGB", (width, height), "green").save(jpeg, "JPEG")
            packet = av.Packet(bytes(500) if n < bad else jpeg.getvalue())
            packet.pts = packet.dts = n * 40
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 1000), True, stream
            container.mux(packet)
    return path


@pytest.mark.parametrize("bad", [0, 1, 11, 12])
def test_a_video_that_begins_with_damage_is_read_if_any_frame_is_good(
    tmp_path: Path, bad: int
) -> None:
    path = pictures(tmp_path / "damaged.mkv", [(160, 96)] * 12, bad)
    if bad < 12:
        info = probe(path)
        assert (info.width, info.height, info.frame_count) == (160, 96, 12)
    else:
        with pytest.raises(VideoError, match="none of its frames could be decoded as mjpeg"):
            probe(path)


@pytest.mark.parametrize("later", [[], [(320, 96)], [(320, 96), (96, 160)]])
def test_a_video_is_as_large_as_its_first_picture(
    tmp_path: Path, later: list[tuple[int, int]]
) -> None:
    info = probe(pictures(tmp_path / "sizes.mkv", [(160, 96), *later]))
    assert (info.width, info.height, info.frame_count) == (160, 96, 1 + len(later))


def index_of(
    pts: list[int], *, keys: tuple[int, ...] = (0,), last_duration: int = 0
) -> PacketIndex:
    """The index of packets that come in the order of their decoding times."""
    return build_index(
        np.array(pts),
        dts_P=np.array(pts),
        key_P=np.isin(np.arange(len(pts)), keys),
        discard_P=np.zeros(len(pts), bool),
        reference_P=np.ones(len(pts), bool),
        last_duration=last_duration,
        frame_duration=40,
        max_pause=0,
        is_plain=True,
        expected=len(pts),
    )


def test_equal_timestamps_count_once() -> None:
    index = index_of([0, 1, 1, 2])
    assert index.pts_N.tolist() == [0, 1, 2]
    assert index.packet_N.tolist() == [0, 1, 3]
    assert index.end_pts == 3
    assert not index.vouched


@pytest.mark.parametrize(("last_duration", "end"), [(0, 350), (1, 251), (30, 280), (500, 750)])
def test_the_last_frame_ends_when_its_packet_says_or_as_others_do(
    last_duration: int, end: int
) -> None:
    assert index_of([0, 100, 150, 250], last_duration=last_duration).end_pts == end


@pytest.mark.parametrize(("last_duration", "end"), [(0, 1040), (30, 1030)])
def test_a_single_frame_lasts_as_its_packet_says_or_as_long_as_a_frame_does(
    last_duration: int, end: int
) -> None:
    assert index_of([1000], last_duration=last_duration).end_pts == end


def test_times_that_begin_again_are_moved_behind_the_others() -> None:
    index = index_of([1000, 1040, 1080, 500, 540, 2**40, 2**40 + 40], keys=(0, 3, 5))
    shifts = [0, 0, 0, 620, 620, 620, 620]
    assert index.restarts == 1
    assert index.shift_P is not None
    assert index.shift_P.tolist() == shifts
    moved = [1000, 1040, 1080, 1120, 1160, 2**40 + 620, 2**40 + 660]
    assert index.pts_P.tolist() == index.pts_N.tolist() == moved


def test_packets_without_times_are_numbered_and_not_believed() -> None:
    index = index_of([0, UNKNOWN, 80], last_duration=500)
    assert index.pts_N.tolist() == [0, 40, 80]
    assert index.end_pts == 120
    assert not index.timestamps_known
    assert not index.vouched


@pytest.mark.parametrize(
    ("pts", "keys", "vouched"),
    [
        ([0, 80, 40, 120, 200, 160], (0, 3), True),
        ([40, 0, 80, 120], (0, 3), False),  # a frame is shown before the key frame
        ([0, 40, 80, 120], (1, 3), False),  # the first cannot be decoded alone
        ([0, 40, 80, 120], (), False),
        ([40, 0, 80, 120], (0,), False),
        ([40, 0, 80, 120], (0, 1, 2, 3), True),  # each is a picture of its own
    ],
)
def test_a_plain_index_is_believed(pts: list[int], keys: tuple[int, ...], vouched: bool) -> None:
    assert index_of(pts, keys=keys).vouched is vouched

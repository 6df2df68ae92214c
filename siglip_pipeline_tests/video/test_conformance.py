"""Files of kinds that often cause trouble decode to the frames that the ffmpeg program shows."""

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.hidden import HIDDEN
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.ffmpeg_reference import (
    EXACTLY,
    REPORTS,
    Indexed,
    difference,
    ffmpeg,
    indexed,
    indexed_many,
    shown,
)
from siglip_pipeline_tests.video.field_pictures import field_picture, sequence


def assert_same_planes(path: Path, *, size: str) -> None:
    """Decoded 4:2:0 frames are those of ffmpeg, byte by byte and in the same order."""
    arguments = [*EXACTLY, "-i", path, "-fps_mode", "passthrough", "-pix_fmt", "yuv420p"]
    raw = subprocess.run(
        ["ffmpeg", "-v", "quiet", *map(str, arguments), "-f", "rawvideo", "-"],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    width, height = map(int, size.split("x"))
    expected = np.frombuffer(raw, np.uint8).reshape(-1, height * 3 // 2, width)
    source = MediaSource(path.name, path=path)
    scanned = index_frames(source)
    everything = np.arange(scanned.packets.pts_N.size)
    decoded = decode_frames(source, scanned, plan_decode(scanned.packets, everything))
    np.testing.assert_array_equal([frame.frame.to_ndarray() for frame in decoded], expected)


def assert_shown(
    out: Indexed, expected: NDArray[np.uint8], *, within: float = 5, moves: bool = True
) -> None:
    """Check that the stored pictures are those that ffmpeg shows, one by one.

    Args:
        out: what is stored.
        expected: what ffmpeg shows.
        within: largest difference, for JPEG and the interpolation of colours.
        moves: neighbours differ by more than JPEG does, so each must be nearest to its own frame.
    """
    assert len(out.pictures) == len(expected)
    for number, (ours, theirs) in enumerate(zip(out.pictures, expected, strict=True)):
        apart = difference(ours, theirs)
        assert apart <= within, f"frame {number}"
        for other in expected[max(0, number - 1) : number + 2] if moves else ():
            assert apart <= difference(ours, other) + 0.25, f"frame {number} is its neighbour"


def test_optional_metadata_is_never_fatal(tmp_path: Path) -> None:
    out = indexed(REPORTS / "mjpeg-frames-with-exif.avi", tmp_path)
    assert out.seconds_N == pytest.approx(np.arange(30) / 10)
    assert out.report.warnings == ()


@pytest.mark.parametrize(
    "name", ["mkv-cover-as-first-video-track.mkv", "mp4-cover-as-second-video-track.mp4"]
)
def test_a_cover_in_a_track_of_its_own_is_not_the_film(name: str, tmp_path: Path) -> None:
    out = indexed(REPORTS / name, tmp_path)
    assert (out.report.info.width, out.report.info.height) == (640, 360)
    assert out.seconds_N == pytest.approx(np.arange(100) / 25)
    assert out.report.warnings == ()


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_films_the_default_one_is_indexed_and_the_others_are_named(
    default: int, tmp_path: Path
) -> None:
    path = tmp_path / "dashcam.mkv"
    dispositions = [f"-disposition:v:{n}" for n in (0, 1)]
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=160x120:r=10:d=2"),
        *("-f", "lavfi", "-i", "testsrc2=s=320x240:r=10:d=2"),
        *("-map", "0", "-map", "1", "-c:v", "mpeg4"),
        *(dispositions[default], "default", dispositions[1 - default], "0", path),
    )
    out = indexed(path, tmp_path)
    assert out.report.info.width == (160, 320)[default]
    other = ("track 2 (mpeg4 320x240)", "track 1 (mpeg4 160x120)")[default]
    assert out.report.warnings == (f"a second video track is left out: {other}",)


@pytest.mark.parametrize("codec", ["ffv1", "msvideo1"])
def test_frames_that_are_wrongly_called_key_frames_are_shown_whole(
    codec: str, tmp_path: Path
) -> None:
    path = tmp_path / "film.mov"
    film = ["-f", "lavfi", "-i", "testsrc2=s=160x96:r=10:d=5"]
    ffmpeg(*film, "-c:v", codec, "-g", "50", path)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    some, every = indexed(path, tmp_path, sampling="every:7"), indexed(path, tmp_path)
    assert len(every.pictures) == 50
    np.testing.assert_array_equal(some.pictures, every.pictures[::7])


@pytest.mark.parametrize("suffix", ["mpg", "ts"])
def test_a_recording_that_begins_between_key_frames_is_one(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    pictures = "testsrc2=s=64x48:r=25:d=2,eq=brightness='0.2*sin(2.4*n)':eval=frame"
    open_groups = ["-bf", "2", "-g", "12", "-flags", "-cgop"]
    film = ["-f", "lavfi", "-i", pictures, "-c:v", "mpeg2video", "-q:v", "2"]
    ffmpeg(*film, *open_groups, path)
    raw = path.read_bytes()
    sector = {"mpg": 2048, "ts": 188}[suffix]
    path.write_bytes(raw[len(raw) // 3 // sector * sector :])
    out = indexed(path, tmp_path)
    assert out.report.warnings == ()
    assert len(out.pictures) == len(shown(path, size="64x48"))
    assert np.diff(out.seconds_N) == pytest.approx(0.04, abs=1e-3)


def test_video_that_begins_in_the_middle_of_a_broadcast_is_named(tmp_path: Path) -> None:
    """As the second of three parts has: its packets have another identifier."""
    parts = []
    for number, first in enumerate((0x100, 0x150, 0x100)):
        path = tmp_path / f"{number}.ts"
        at = ["-mpegts_start_pid", str(first), "-output_ts_offset", str(2 * number)]
        film = ["-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=2"]
        ffmpeg(*film, "-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv420p", *at, path)
        parts.append(path.read_bytes())
    path = tmp_path / "broadcast.ts"
    path.write_bytes(b"".join([parts[0] * 8, *parts[1:]]))
    out = indexed(path, tmp_path, sampling="fps:1")
    assert "video that begins later in the file is left out: track 2 (h264)" in out.report.warnings


def test_the_players_second_of_the_first_frame_is_known(tmp_path: Path) -> None:
    out = indexed(REPORTS / "mp4-video-begins-2s-after-sound.mp4", tmp_path)
    assert out.report.info.media_time_seconds == pytest.approx(2.0)
    assert out.seconds_N == pytest.approx(np.arange(100) / 25)


def test_a_field_is_not_a_frame(tmp_path: Path) -> None:
    path = REPORTS / "h264-paff-2997-a-pes-per-field.mts"
    out = indexed(path, tmp_path)
    info = out.report.info
    assert (info.frame_count, out.report.damaged_packets) == (240, 0)
    assert info.duration_seconds == pytest.approx(8.0, abs=0.05)
    assert out.seconds_N == pytest.approx(np.arange(240) * 1001 / 30000, abs=2e-4)
    expected = shown(path, filters="bwdif=send_frame:-1:interlaced", size="128x64")
    assert_shown(out, expected, moves=False)
    assert_same_planes(path, size="128x64")


def test_one_missing_time_leaves_all_others(tmp_path: Path) -> None:
    path = REPORTS / "ts-one-frame-without-pts-and-a-gap.ts"
    out = indexed(path, tmp_path)
    times = np.arange(200) / 25
    times[100:] += 60
    assert out.seconds_N == pytest.approx(times)
    assert_shown(out, shown(path, size="160x128"))


TESTSRC = ("-f", "lavfi", "-i")


OFFSETS = (0.0, 1.9, 0.02, -3.98, 95_440.0)
"""Seconds from the first timestamp of a recording to that of the next."""


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
@pytest.mark.parametrize("suffix", ["ts", "vob"])
def test_recordings_that_were_joined_follow_each_other(
    suffix: str, codec: str, tmp_path: Path
) -> None:
    """Timestamps that begin again, overlap, jump back, or wrap."""

    def recording(picture: str, start: float) -> bytes:
        part = tmp_path / f"part.{suffix}"
        ffmpeg(
            *(*TESTSRC, f"{picture}=s=160x128:r=25:d=2", "-c:v", codec, "-bf", "2", "-g", "12"),
            *("-q:v", "3", "-output_ts_offset", str(start), part),
        )
        return part.read_bytes()

    first = recording("testsrc2", 10.0)
    paths = {offset: tmp_path / f"joined {offset}.{suffix}" for offset in OFFSETS}
    for offset, path in paths.items():
        path.write_bytes(first + recording("smptebars", 10.0 + offset))
    outcomes = indexed_many([*paths.values()], tmp_path)
    for offset, path in paths.items():
        out = outcomes[path.name]
        assert isinstance(out, Indexed), (offset, out)
        count = 100 if codec != "libx264" or suffix == "ts" else len(out.seconds_N)
        assert len(out.seconds_N) == count >= 98, offset
        assert np.diff(out.seconds_N) == pytest.approx(np.full(count - 1, 0.04), abs=0.021), offset
        (warning,) = out.report.warnings
        assert warning.startswith("timestamps begin again 1 time"), offset
        assert_shown(out, shown(path, size="160x128")[:count])


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_a_pause_stays(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pause.{suffix}"
    ffmpeg(
        *(*TESTSRC, "testsrc2=s=160x128:r=25:d=4", "-vf", "setpts='PTS+gte(N,50)*3600/TB'"),
        *("-fps_mode", "passthrough", "-c:v", "libx264", path),
    )
    out = indexed(path, tmp_path)
    assert out.seconds_N[[0, 49, 50, 99]] == pytest.approx([0, 1.96, 3602, 3603.96], abs=0.01)
    assert out.report.warnings == ()


def test_the_aspect_may_change(tmp_path: Path) -> None:
    """No frame is lost there; the decoder of ffmpeg 5.1 loses the last one before the change."""
    path = tmp_path / "aspects.ts"
    with path.open("wb") as joined:
        for number, aspect in enumerate(("4:3", "16:9")):
            part = tmp_path / f"part{number}.ts"
            ffmpeg(
                *(*TESTSRC, "testsrc2=s=352x288:r=25:d=2", "-c:v", "mpeg2video", "-bf", "2"),
                *("-aspect", aspect, "-output_ts_offset", str(2 * number), part),
            )
            joined.write(part.read_bytes())
    sizes = [(p.shape[1], p.shape[0]) for p in indexed(path, tmp_path).pictures]
    assert sizes == [(384, 288)] * 50 + [(512, 288)] * 50


def test_the_size_may_change(tmp_path: Path) -> None:
    path = tmp_path / "sizes.ts"
    with path.open("wb") as joined:
        for number, size in enumerate(("160x128", "320x192")):
            part = tmp_path / f"part{number}.ts"
            ffmpeg(
                *(*TESTSRC, f"testsrc2=s={size}:r=25:d=2", "-c:v", "libx264"),
                *("-output_ts_offset", str(2 * number), part),
            )
            joined.write(part.read_bytes())
    sizes = [(p.shape[1], p.shape[0]) for p in indexed(path, tmp_path).pictures]
    assert sizes == [(160, 128)] * 50 + [(320, 192)] * 50


@pytest.mark.parametrize("sampling", ["every:1", "fps:1", "keyframes", "fps:1/60", "scenes"])
def test_interlaced_frames_are_not_combed(sampling: str, tmp_path: Path) -> None:
    path = REPORTS / "h264-interlaced-moving-bar.mp4"
    out = indexed(path, tmp_path, sampling=sampling)
    for ours in out.pictures:
        luma = ours.astype(int).mean(axis=2)
        assert np.abs(np.diff(luma, axis=0)).mean() < 1
    if sampling == "every:1":
        assert out.seconds_N == pytest.approx(np.arange(50) / 25)
        assert_shown(out, shown(path, filters="bwdif=send_frame", size="320x240"))


@pytest.mark.parametrize("suffix", ["m2v", "ts", "mkv", "mpg"])
def test_fields_of_mpeg2_are_no_frames(suffix: str, tmp_path: Path) -> None:
    """Field pictures, in a packet with a time for each."""
    lumas = [60 + 6 * (n // 2) if n % 2 == 0 else 200 - 5 * (n // 2) for n in range(40)]
    fields = [
        (sequence() if n % 10 == 0 else b"") + field_picture(n // 2, is_bottom=n % 2 > 0, luma=luma)
        for n, luma in enumerate(lumas)
    ]
    raw = tmp_path / "fields.m2v"
    raw.write_bytes(b"".join(fields))
    path = tmp_path / f"fields.{suffix}"
    if suffix != "m2v":
        with av.open(str(raw)) as source, av.open(str(path), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for n, field in enumerate(fields):
                packet = av.Packet(field)
                packet.pts = packet.dts = 90_000 + 1800 * n
                packet.time_base, packet.stream = Fraction(1, 90_000), stream
                packet.is_keyframe = n % 10 == 0
                target.mux(packet)
    out = indexed(path, tmp_path)
    assert (out.report.damaged_packets, out.report.warnings) == (0, ())
    # Where one pack of a program stream holds two fields, the time is that of the first or second.
    within = 0.021 if suffix == "mpg" else 1e-6
    assert out.seconds_N == pytest.approx(np.arange(20) / 25, abs=within)
    expected = shown(path, filters="bwdif=send_frame:-1:interlaced", size="64x64")
    assert_shown(out, expected, moves=False)


@pytest.mark.parametrize("sampling", ["every:1", "every:7"])
@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_frames_that_are_never_shown_are_none(codec: str, sampling: str, tmp_path: Path) -> None:
    """Alternate references: packets of their own in VP8, and in VP9 once they are split."""
    made = tmp_path / "made.webm"
    for number in ("1", "2"):  # encoders plan alternate references in a pass of their own
        ffmpeg(
            *(*TESTSRC, "testsrc2=s=160x128:r=25:d=2", "-c:v", codec, "-b:v", "300k", "-g", "100"),
            *("-auto-alt-ref", "1", "-lag-in-frames", "16", "-deadline", "good", "-cpu-used", "4"),
            *("-pass", number, "-passlogfile", tmp_path / "passes", made),
        )
    path = made
    if codec == "libvpx-vp9":
        path = tmp_path / "split.nut"
        ffmpeg("-i", made, "-c", "copy", "-bsf:v", "vp9_superframe_split", path)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    is_hidden = HIDDEN["vp9" if codec.endswith("vp9") else "vp8"]
    assert any(is_hidden(memoryview(packet)) for packet in packets)
    out = indexed(path, tmp_path, sampling=sampling)
    step = int(sampling.removeprefix("every:"))
    assert out.seconds_N == pytest.approx(np.arange(0, 50, step) / 25, abs=1e-3)
    assert_shown(out, shown(made, size="160x128")[::step])


def test_headers_of_a_joined_ogg_are_not_lost_frames(tmp_path: Path) -> None:
    part, path = tmp_path / "part.ogg", tmp_path / "joined.ogg"
    film = "testsrc2=s=64x48:r=25:d=0.4,eq=brightness='0.2*sin(2.4*n)':eval=frame"
    ffmpeg(*TESTSRC, film, "-c:v", "libtheora", "-q:v", "8", part)
    path.write_bytes(2 * part.read_bytes())
    out = indexed(path, tmp_path)
    assert out.report.damaged_packets == 0
    assert [warning[:27] for warning in out.report.warnings] == ["timestamps begin again 1 ti"]
    assert_shown(out, np.concatenate(2 * [shown(part, size="64x48")]))


@pytest.mark.parametrize("suffix", ["avi", "mov", "dv"])
def test_the_aspect_of_a_container_precedes_that_of_the_stream(suffix: str, tmp_path: Path) -> None:
    """FFmpeg writes 1:1 into AVI and QuickTime, and DV says 16:15."""
    path = tmp_path / f"camera.{suffix}"
    ffmpeg(*TESTSRC, "testsrc2=s=720x576:r=25:d=0.2", "-c:v", "dvvideo", path)
    size = "768x576" if suffix == "dv" else "720x576"
    out = indexed(path, tmp_path)
    assert {f"{p.shape[1]}x{p.shape[0]}" for p in out.pictures} == {size}
    square = "scale='round(iw*sar)':ih:flags=bicubic"
    assert_shown(out, shown(path, filters=square, size=size), moves=False)


@pytest.mark.parametrize("pixel_format", ["rgb565be", "bgr565be", "rgb555be", "bgr555be"])
def test_thousands_of_colours(pixel_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"old.{'mov' if pixel_format == 'rgb555be' else 'nut'}"
    film = ("testsrc2=s=64x48:r=5:d=1", "-c:v", "rawvideo", "-pix_fmt", pixel_format)
    ffmpeg(*TESTSRC, *film, path)
    assert_shown(indexed(path, tmp_path), shown(path, size="64x48"), moves=False)


@pytest.mark.parametrize(("codec", "pixel_format"), [("mpeg2video", "yuv422p"), ("dvvideo", None)])
def test_an_index_of_fields_tells_nothing_of_frames(
    codec: str, pixel_format: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "server.gxf"
    options = ("-pix_fmt", pixel_format) if pixel_format else ()
    ffmpeg(*TESTSRC, "testsrc2=s=720x576:r=25:d=0.4", "-c:v", codec, *options, path)
    out = indexed(path, tmp_path)
    assert (out.report.damaged_packets, out.report.warnings) == (0, ())
    assert len(out.pictures) == len(shown(path, size="720x576")) == 10

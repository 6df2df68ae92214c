"""Streams that change or break in the middle are indexed as the ffmpeg program shows them."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import OVERLAPPED
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.crafted_files import (
    one_track,
    sample_entry,
    spatial,
    with_map_version,
    with_matrix,
    with_roll,
)
from siglip_pipeline_tests.video.ffmpeg_reference import (
    REPORTS,
    Indexed,
    difference,
    ffmpeg,
    indexed,
    indexed_many,
)
from siglip_pipeline_tests.video.heif_boxes import clap
from siglip_pipeline_tests.video.test_combinations import differences, reference
from siglip_pipeline_tests.video.test_geometry import matrix_of, turned

PICTURES = "testsrc2=s={size}:r=25:d=1,eq=brightness='0.2*sin(2.4*n)':eval=frame"
PAFF = REPORTS / "h264-paff-2997-a-pes-per-field.mts"
"""A packet and a time for each field: 480 packets, 240 frames."""
SHORT = ("-frames:v", "5")
"""Of a film whose frames are all turned alike."""


def film(path: Path, *options: str, size: str = "64x48", codec: str = "libx264") -> Path:
    pictures = PICTURES.format(size=size)
    ffmpeg("-f", "lavfi", "-i", pictures, "-c:v", codec, "-bf", "0", "-g", "10", *options, path)
    return path


def same_as_ffmpeg(path: Path, folder: Path) -> Indexed:
    out = indexed(path, folder)
    assert differences(out, reference([path], folder)[path.name]) == []
    return out


@pytest.mark.parametrize("sampling", ["every:37", "keyframes"])
@pytest.mark.parametrize(
    ("codec", "options", "sizes"),
    [
        ("libx264", ((), ("-preset", "ultrafast")), ("64x48", "64x48")),
        ("libx264", ((), ()), ("64x48", "96x64")),
        ("libx265", ((), ()), ("96x64", "64x48")),
    ],
)
def test_a_track_may_have_several_sample_descriptions(
    codec: str,
    options: Sequence[Sequence[str]],
    sizes: Sequence[str],
    sampling: str,
    tmp_path: Path,
) -> None:
    """Also if the packet that brings the second one is not needed."""
    more = {"libx265": ("-tag:v", "hvc1", "-x265-params", "log-level=none:bframes=0")}
    parts = [
        film(tmp_path / f"{n}.mp4", *options[n], *more.get(codec, ()), size=sizes[n], codec=codec)
        for n in (0, 1)
    ]
    alone = [picture for part in parts for picture in indexed(part, tmp_path).pictures]
    path = tmp_path / "joined.mp4"
    path.write_bytes(one_track([(part, sample_entry(part)) for part in parts]))
    out = indexed(path, tmp_path, sampling=sampling)
    assert out.report.warnings == ()
    assert max(out.seconds_N) >= 1
    for seconds, picture in zip(out.seconds_N, out.pictures, strict=True):
        assert difference(picture, alone[round(seconds * 25)]) < 1


def test_a_track_that_changes_its_codec_is_indexed_in_part(tmp_path: Path) -> None:
    parts = [film(tmp_path / f"{c}.mp4", codec=c) for c in ("libx264", "mpeg4")]
    path = tmp_path / "joined.mp4"
    path.write_bytes(one_track([(part, sample_entry(part)) for part in parts]))
    out = same_as_ffmpeg(path, tmp_path)
    told = "the track changes its codec (avc1, mp4v): 50% of the footage is not indexed"
    assert out.report.warnings == (told,)


def test_the_clean_aperture_of_a_video_is_not_applied(tmp_path: Path) -> None:
    """FFmpeg 5.1 and browsers show the whole picture."""
    part = film(tmp_path / "part.mp4")
    path = tmp_path / "aperture.mp4"
    path.write_bytes(one_track([(part, sample_entry(part, clap(31, 21, "1/2")))]))
    assert same_as_ffmpeg(path, tmp_path).pictures[0].shape == (48, 64, 3)


def test_of_spatial_video_the_first_view_is_shown(tmp_path: Path) -> None:
    options = ("-tag:v", "hvc1", "-x265-params", "log-level=none:pools=1:frame-threads=1")
    path = tmp_path / "spatial.mov"
    path.write_bytes(spatial(film(tmp_path / "view.mp4", *options, codec="libx265"), tmp_path))
    out = same_as_ffmpeg(path, tmp_path)
    assert (len(out.pictures), out.report.damaged_packets, out.report.warnings) == (25, 0, ())


@pytest.mark.parametrize(
    ("roll", "degrees"),
    [(90.0, 270), (-90.0, 90), (180.0, 180), (0.0, 0), (30.0, 330), (-100.0, 100)],
)
def test_matroska_is_turned_by_its_projection(roll: float, degrees: int, tmp_path: Path) -> None:
    path = tmp_path / "turned.mkv"
    path.write_bytes(
        with_roll(film(tmp_path / "film.mkv", *SHORT, size="320x240").read_bytes(), roll)
    )
    out = same_as_ffmpeg(path, tmp_path)
    assert out.report.info.rotation_degrees == degrees
    assert len(out.pictures) == 5


MATRICES = {
    **{f"turned by {n}": turned(n) for n in (1, 2, 30, 45, 89, 90, 120, 180, 200, 270, 315, 359)},
    **{
        f"mirrored and turned by {n}": turned(n, mirrored=True)
        for n in (0, 1, 20, 90, 135, 180, 181)
    },
    "enlarged": (2, 0, 0, 2),
    "wide": (2, 0, 0, 1),
    "wide, upside down": (2, 0, 0, -1),
    "wide, turned by 90": (0, 1, -2, 0),
    "wide, turned by 30": (2 * 0.866, 0.5, -2 * 0.5, 0.866),
    "sheared": (1, 0, 0.5, 1),
    "sheared the other way": (1, 0.5, 0, 1),
    "sheared and turned by 90": (0, 1, -1, 0.3),
    "flat": (1, 2, 2, 4),
    "nothing": (1, 0, 1, 0),
}


def test_an_mp4_is_turned_by_its_matrix(tmp_path: Path) -> None:
    """All in one child and one call of ffmpeg: to start them takes longer than to decode."""
    upright = film(tmp_path / "film.mp4", *SHORT, size="320x240").read_bytes()
    paths = [tmp_path / f"{name}.mp4" for name in MATRICES]
    for path in paths:
        path.write_bytes(with_matrix(upright, matrix_of(*MATRICES[path.stem])))
    ours, theirs = indexed_many(paths, tmp_path), reference(paths, tmp_path)
    found = {name: differences(out, theirs[name]) for name, out in ours.items()}
    assert found == {path.name: [] for path in paths}
    stored = [out for out in ours.values() if isinstance(out, Indexed)]
    assert [(len(out.pictures), out.report.warnings) for out in stored] == [(5, ())] * len(paths)


LOST_FIELDS = [(41,), (40,), (1,), (41, 100, 201)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "h264"])
def test_fields_of_which_some_are_missing(suffix: str, tmp_path: Path) -> None:
    paths = {tmp_path / f"{len(lost)} from {lost[0]}.{suffix}": lost for lost in LOST_FIELDS}
    for path, lost in paths.items():
        with av.open(str(PAFF)) as source, av.open(str(path), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            packets = (packet for packet in source.demux(video=0) if packet.size)
            for number, packet in enumerate(packets):
                if number not in lost:
                    packet.stream = stream
                    target.mux(packet)
    ours, theirs = indexed_many([*paths], tmp_path), reference([*paths], tmp_path)
    for path, lost in paths.items():
        out, shown = ours[path.name], theirs[path.name]
        assert isinstance(out, Indexed), out
        assert out.report.warnings == ()
        assert len(out.pictures) == len(shown.pictures) == 240 - len(lost), lost
        # A stream without a container has no times of its own.
        assert suffix == "h264" or differences(out, shown) == [], lost


def test_a_recording_that_changes_from_frames_to_fields(tmp_path: Path) -> None:
    frames, fields = tmp_path / "frames.ts", tmp_path / "fields.ts"
    pictures = PICTURES.format(size="128x64").replace("r=25:d=1", "r=60000/1001:d=2")
    interlaced = "interlace=scan=tff,scale=interl=1,format=yuv420p"
    ffmpeg(
        *("-f", "lavfi", "-i", pictures, "-vf", interlaced, "-c:v", "libx264"),
        *("-x264opts", "tff=1:bframes=2", frames),
    )
    ffmpeg("-i", PAFF, "-c", "copy", "-output_ts_offset", "2", fields)
    path = tmp_path / "both.ts"
    path.write_bytes(frames.read_bytes() + fields.read_bytes())
    out = indexed(path, tmp_path, threads=2)
    assert len(out.pictures) == len(reference([path], tmp_path)[path.name].pictures) == 300


@pytest.mark.parametrize("size", ["64x48", "96x64"])
def test_a_program_map_may_change(size: str, tmp_path: Path) -> None:
    parts = [
        film(tmp_path / f"{n}.ts", "-output_ts_offset", str(n), size=("64x48", size)[n])
        for n in (0, 1)
    ]
    path = tmp_path / "changed.ts"
    path.write_bytes(parts[0].read_bytes() + with_map_version(parts[1].read_bytes(), 1))
    out = indexed(path, tmp_path)
    assert out.report.warnings == ()
    assert out.seconds_N == pytest.approx(np.arange(50) / 25, abs=1e-3)
    shapes = [picture.shape[1::-1] for picture in out.pictures]
    assert shapes == [(64, 48)] * 25 + [tuple(map(int, size.split("x")))] * 25


def test_video_that_a_program_map_moves_is_named(tmp_path: Path) -> None:
    parts = [
        film(tmp_path / f"{n}.ts", "-output_ts_offset", str(n), "-mpegts_start_pid", pid)
        for n, pid in enumerate(("0x100", "0x150"))
    ]
    path = tmp_path / "moved.ts"
    path.write_bytes(parts[0].read_bytes() + with_map_version(parts[1].read_bytes(), 1))
    out = same_as_ffmpeg(path, tmp_path)
    assert out.report.warnings == ("a second video track is left out: track 2 (h264)",)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("repeated", [(5,), (13,), (5, 13), (10,), (5, 10, 20)])
def test_frames_with_the_time_of_the_one_before_are_frames(
    repeated: tuple[int, ...], codec: str, tmp_path: Path
) -> None:
    """Between its neighbours: no frame can be found by a time that two have.

    Frames 10 and 20 are key frames; a recording that was joined begins with one, but earlier.
    """
    path = tmp_path / "repeated.mkv"
    whole = film(tmp_path / "whole.mkv", codec=codec)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        times = [packet.pts for packet in packets]
        for number, packet in enumerate(packets):
            packet.stream = stream
            packet.pts = packet.dts = times[number - (number in repeated)]
            target.mux(packet)
    out = indexed(path, tmp_path)
    theirs = reference([path], tmp_path)[path.name]
    assert out.report.warnings == ()
    assert out.seconds_N == pytest.approx(np.arange(25) / 25, abs=1e-3)
    assert np.delete(theirs.seconds_N, repeated) == pytest.approx(
        np.delete(out.seconds_N, repeated), abs=1e-3
    )
    for ours, shown in itertools.zip_longest(out.pictures, theirs.pictures):
        assert difference(ours, shown) < 6


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "h264"), ("libx265", "hevc")])
def test_a_raw_stream_is_known_by_its_name_if_its_first_bytes_tell_nothing(
    codec: str, suffix: str, tmp_path: Path
) -> None:
    path = film(tmp_path / f"cut.{suffix}", codec=codec)
    path.write_bytes(b"\0\0\1\x80 the rest of a frame" + path.read_bytes())
    out = indexed(path, tmp_path)
    assert len(out.pictures) == 25


@pytest.mark.parametrize("brands", [(b"msf1", b"hevc"), (b"hevc", b"msf1")])
def test_an_image_sequence_of_heif_is_a_video(brands: tuple[bytes, bytes], tmp_path: Path) -> None:
    made = film(tmp_path / "made.mp4", "-tag:v", "hvc1", codec="libx265").read_bytes()
    size = int.from_bytes(made[:4], "big")
    head = (made[:8] + brands[0] + bytes(4) + brands[1]).ljust(size, b"\0")
    path = tmp_path / "sequence.heics"
    path.write_bytes(head[:size] + made[size:])
    out = same_as_ffmpeg(path, tmp_path)
    assert (len(out.pictures), out.report.warnings) == (25, ())


@pytest.mark.parametrize(
    ("suffix", "muxer"), [("drc", "dirac"), ("ts", "mpegts"), ("mkv", "matroska")]
)
def test_the_end_of_a_dirac_stream_is_no_frame(suffix: str, muxer: str, tmp_path: Path) -> None:
    path = film(tmp_path / f"film.{suffix}", "-f", muxer, codec="vc2")
    out = same_as_ffmpeg(path, tmp_path)
    assert (len(out.pictures), out.report.warnings) == (25, ())
    # The times of a raw stream are numbers of pictures, here as in ffmpeg.
    assert suffix == "drc" or out.report.info.duration_seconds == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize("turn", ["rotate=90", "rotate=180", "flip=horizontal"])
def test_an_h264_message_of_orientation_turns_the_frames_that_carry_it(
    turn: str, tmp_path: Path
) -> None:
    """The first one alone, as FFmpeg shows it, although the message speaks of those that follow."""
    message = f"h264_metadata=display_orientation=insert:{turn}"
    out = indexed(film(tmp_path / "turned.mp4", "-bsf:v", message), tmp_path)
    upright = indexed(film(tmp_path / "upright.mp4"), tmp_path)
    pairs = itertools.zip_longest(out.pictures, upright.pictures)
    is_other = [a.shape != b.shape or difference(a, b) > 6 for a, b in pairs]
    assert is_other == [True] + [False] * 24


@pytest.mark.parametrize("name", ["smc.mov", "raw.mov", "raw.avi"])
def test_a_palette_comes_with_the_first_packet_alone(name: str, tmp_path: Path) -> None:
    codec = {"smc": "smc", "raw": "rawvideo"}[name[:3]]
    path = film(tmp_path / name, "-pix_fmt", "pal8", codec=codec)
    source = MediaSource(path.name, path=path)
    scanned = index_frames(source)
    plan = plan_decode(scanned.packets, np.array([20]))
    (decoded,) = decode_frames(source, scanned, plan)
    expected = reference([path], tmp_path)[path.name].pictures[20]
    assert difference(np.asarray(decoded.frame.to_ndarray(format="rgb24"), np.uint8), expected) < 1


@pytest.mark.parametrize(("repeated", "told"), [(range(3), True), (range(2, 3), False)])
def test_fragments_whose_timestamps_begin_again(
    repeated: range, told: bool, tmp_path: Path
) -> None:
    """Of a second recording the first fragment is lost; a fragment that comes twice is none."""
    path = film(tmp_path / "a.mp4", "-movflags", "frag_keyframe+empty_moov+default_base_moof")
    content = path.read_bytes()
    starts = [match.start() - 4 for match in re.finditer(b"moof", content)]
    ends = [*starts[1:], content.rindex(b"mfra") - 4]
    fragments = [content[begin:end] for begin, end in zip(starts, ends, strict=True)]
    again = b"".join(fragments[n] for n in repeated)
    path.write_bytes(content[: ends[-1]] + again)
    out = indexed(path, tmp_path)
    lost = [warning for warning in out.report.warnings if "not indexed" in warning]
    assert len(out.pictures) == (25 + 15 if told else 25)
    assert lost == ([f"20% of the footage is not indexed: {OVERLAPPED}"] if told else [])

"""Packets that hold several frames: DivX's packed bitstream, and broadcasts with two a packet."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from siglip_pipeline_tests.video.ffmpeg_reference import difference, ffmpeg, indexed, shown

PICTURES = "testsrc2=s=64x48:r=25:d=2,eq=brightness='0.2*sin(2.4*n)':eval=frame"
VOP = b"\0\0\1\xb6"
NOT_CODED = VOP + b"\x51\0\1"
BIDIRECTIONAL = 2


def _packets(path: Path) -> tuple[av.VideoStream, list["av.Packet[av.VideoStream]"]]:
    container = av.open(str(path))
    stream = container.streams.video[0]
    return stream, [packet for packet in container.demux(stream) if packet.size]


def _write(
    path: Path, like: av.VideoStream, packets: list[tuple[bytes, int, bool]], base: Fraction
) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(like)
        for data, time, is_key in packets:
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, base
            packet.pts = packet.dts = time
            packet.is_keyframe = is_key
            container.mux(packet)


@pytest.fixture
def divx(tmp_path: Path) -> Path:
    """A film whose frames are packed with those shown before them."""
    plain = tmp_path / "plain.avi"
    options = ("-bf", "2", "-b_strategy", "0", "-q:v", "2", "-g", "12", "-vtag", "DX50")
    ffmpeg("-f", "lavfi", "-i", PICTURES, "-c:v", "mpeg4", *options, plain)
    like, packets = _packets(plain)
    frames = [bytes(packet) for packet in packets]
    kinds = [frame[frame.index(VOP) + 4] >> 6 for frame in frames]
    packed: list[tuple[bytes, bool]] = []
    while frames:
        is_key = kinds[0] == 0
        if kinds[1:2] == [BIDIRECTIONAL]:
            packed.append((frames[0] + frames[1], is_key))
            del frames[:2], kinds[:2]
            while kinds[:1] == [BIDIRECTIONAL]:
                packed.append((frames.pop(0), False))
                del kinds[0]
            packed.append((NOT_CODED, False))
        else:
            packed.append((frames.pop(0), is_key))
            del kinds[0]
    first = bytes(like.codec_context.extradata or b"") + b"\0\0\1\xb2DivX503b1393p"
    packed[0] = (first + packed[0][0][packed[0][0].index(VOP) :], True)
    path = tmp_path / "packed.avi"
    timed = [(data, place, is_key) for place, (data, is_key) in enumerate(packed)]
    _write(path, like, timed, like.time_base or Fraction(1, 25))
    return path


@pytest.mark.parametrize("sampling", ["every:1", "fps:5", "scenes"])
def test_divx_that_packs_frames(divx: Path, sampling: str, tmp_path: Path) -> None:
    wanted = shown(divx, size="64x48")
    assert len(wanted) == 50
    out = indexed(divx, tmp_path, sampling=sampling)
    assert out.report.warnings == ()
    numbers = np.rint(out.seconds_N * 25).astype(int)
    assert sampling != "every:1" or numbers.tolist() == list(range(50))
    for number, picture in zip(numbers, out.pictures, strict=True):
        assert difference(picture, wanted[number]) < 6, number


def test_two_frames_a_packet_of_a_broadcast(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.ts", tmp_path / "pairs.ts"
    options = ("-bf", "0", "-g", "10", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", PICTURES, "-c:v", "libx264", *options, plain)
    like, packets = _packets(plain)
    pairs = [
        (bytes(first) + bytes(second), first.pts or 0, first.is_keyframe)
        for first, second in zip(packets[::2], packets[1::2], strict=True)
    ]
    _write(path, like, pairs, like.time_base or Fraction(1, 90000))
    out = indexed(path, tmp_path)
    assert out.seconds_N == pytest.approx(np.arange(50) / 25, abs=1e-3)
    for picture, wanted in zip(out.pictures, shown(path, size="64x48"), strict=True):
        assert difference(picture, wanted) < 6

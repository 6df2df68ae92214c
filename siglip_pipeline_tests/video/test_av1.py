"""Reading AV1 headers: a damaged or unknown packet counts as a reference."""

import av
import numpy as np
import pytest

from siglip_pipeline.video.av1 import Bits, ReferenceReader, UnreadableError, units
from siglip_pipeline_tests.video.test_decode import DATA


def packets_and_extradata() -> tuple[list[bytes], bytes | None]:
    with av.open(str(DATA / "av1_video.mkv")) as container:
        stream = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        return packets, stream.codec_context.extradata


def test_some_frames_of_a_real_video_are_no_reference() -> None:
    packets, extradata = packets_and_extradata()
    reader = ReferenceReader(extradata)
    references = [reader.is_reference(packet) for packet in packets]
    assert references[0], "a key frame fills every slot"
    assert 3 <= references.count(False) <= 100


def test_without_a_sequence_header_everything_is_a_reference() -> None:
    packets, _ = packets_and_extradata()
    reader = ReferenceReader(None)
    assert all(reader.is_reference(packet) for packet in packets[1:])


def test_the_sequence_header_may_stand_in_the_stream() -> None:
    packets, extradata = packets_and_extradata()
    known, found = ReferenceReader(extradata), ReferenceReader(None)
    assert [known.is_reference(p) for p in packets] == [found.is_reference(p) for p in packets]


def test_damaged_packets_raise_nothing() -> None:
    packets, extradata = packets_and_extradata()
    random = np.random.default_rng(4)
    for packet in packets:
        data = bytearray(packet)
        for position in random.integers(0, min(40, len(data)), 5):
            data[position] = random.integers(0, 256)
        ReferenceReader(extradata).is_reference(bytes(data[: random.integers(0, len(data))]))
    assert ReferenceReader(extradata).is_reference(b"")
    ReferenceReader(random.bytes(30))


def test_units_and_bits() -> None:
    # A temporal delimiter of size 0, and a frame without a size field.
    assert list(units(b"\x12\x00\x30abc")) == [(2, b""), (6, b"abc")]
    bits = Bits(b"\xa5")
    assert [bits.read(3), bits.read(), bits.read(4)] == [5, 0, 5]
    with pytest.raises(UnreadableError):
        bits.read()
    with pytest.raises(UnreadableError):
        list(units(b"\x12\xff\xff\xff\xff\xff\xff"))

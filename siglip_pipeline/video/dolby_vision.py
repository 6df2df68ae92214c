"""Recognise Dolby Vision whose colours only a Dolby decoder can convert.

Other profiles have a base layer that any decoder shows. Profile 5, and profile 10 of AV1 without a
compatible base layer, code IPT, which other decoders show in purple and green.
"""

import re
from typing import Final

from av.container import InputContainer
from av.stream import Stream
from av.video.frame import VideoFrame

from siglip_pipeline.video.boxes import boxes, read_at, video_entries
from siglip_pipeline.video.side_data import side_data
from siglip_pipeline.video.source import MediaSource

WARNING: Final = (
    "colours are approximate: they are Dolby Vision's without a base layer (profile 5); convert it "
    "to HDR10 or SDR"
)

_CONFIGURATIONS: Final = (b"dvcC", b"dvvC")
_HEAD_BYTES: Final = 2**16
_IN_MATROSKA: Final = re.compile(rb"dv[cv]C.{0,16}?\x41\xed.(.{5})", re.DOTALL)
"""Matches BlockAddIDType and, after its identity and size, BlockAddIDExtraData."""


def needs_dolby(source: MediaSource, container: InputContainer, stream: Stream) -> bool:
    """Return whether the container declares such a profile."""
    if container.format.name.startswith("mov,"):
        with source.open() as file:
            return any(
                _has_no_base_layer(read_at(file, begin, 5))
                for _, start, end in video_entries(file, stream.id)
                for kind, begin, _ in boxes(file, start, end)
                if kind in _CONFIGURATIONS
            )
    if container.format.name.startswith("matroska"):
        with source.open() as file:
            found = _IN_MATROSKA.search(file.read(_HEAD_BYTES))
        return found is not None and _has_no_base_layer(found[1])
    return False


def _has_no_base_layer(configuration: bytes) -> bool:
    """Return whether a decoder configuration has such a profile.

    Its fields are two bytes of version, seven bits of profile, …, and four bits of the base layer's
    compatibility (Dolby Vision Streams Within ISOBMFF).
    """
    if len(configuration) < 5:
        return False
    profile, compatible_with = configuration[2] >> 1, configuration[4] >> 4
    return profile == 5 or (profile == 10 and compatible_with == 0)


def is_dolby_only(frame: VideoFrame) -> bool:
    """Return whether the frame's metadata (RPU) has such a profile.

    The metadata begins with the offset of its header. Profile 5 has VDR RPU profile 0 over a base
    layer of full range (AVDOVIRpuDataHeader of libavutil/dovi_meta.h).
    """
    raw = side_data(frame, "DOVI_METADATA")
    if raw is None or len(raw) < 8:
        return False
    header = raw[int.from_bytes(raw[:8], "little") :][:11]
    return len(header) == 11 and header[4] == 0 and header[10] != 0

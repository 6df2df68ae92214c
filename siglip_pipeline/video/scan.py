"""Scan a container: read all packets of its video once, without decoding.

The scan takes milliseconds and gives every timestamp and key flag. Durations, frame counts and
rates in headers are not used, because they are often missing or wrong.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import VideoInfo
from siglip_pipeline.video.av1 import ReferenceReader
from siglip_pipeline.video.container import PLAYLIST, demux, leads_elsewhere, open_container
from siglip_pipeline.video.dolby_vision import WARNING as DOLBY_WARNING
from siglip_pipeline.video.dolby_vision import needs_dolby
from siglip_pipeline.video.encryption import check_encryption
from siglip_pipeline.video.geometry import (
    DisplayGeometry,
    orientation_of,
    usable_sample_aspect_ratio,
)
from siglip_pipeline.video.hidden import HIDDEN
from siglip_pipeline.video.packet_index import PacketIndex, build_index
from siglip_pipeline.video.side_data import side_data
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.timeline import UNKNOWN
from siglip_pipeline.video.tracks import choose_track, late_tracks, other_codecs
from siglip_pipeline.video.trailing import trailing_data

MAX_SIDE: Final = 32_768
MAX_PIXELS: Final = 16_384 * 8_704
"""Largest frame that is decoded, in pixels: the limit of H.265's level 7.2, about 16K."""

MAX_PACKETS: Final = 20_000_000
"""About 90 hours at 60 frames per second; a file with more packets is damaged."""

MAX_PAUSE_SECONDS: Final = 6 * 3600
"""After a longer pause, a broadcaster's clock was reset, or wrapped: its 33 bits last 26 hours."""

_EDITED_OUT: Final = (
    "its edit list shows none of its frames, as in a player; a copy without the list has them: "
    "ffmpeg -ignore_editlist 1 -i FILE -c copy COPY"
)

OVERLAPPED: Final = "FFmpeg takes a fragment for a repetition where timestamps begin again"

_VOP: Final = b"\0\0\1\xb6"
"""Begins a frame of MPEG-4. DivX packs a frame with the one that is shown before it, and fills the
gap with an empty packet: the times of packets are then those of the frames in order."""

PROGRESSIVE: Final = 1
"""AV_FIELD_PROGRESSIVE of libavcodec/defs.h; 0 is unknown, and all above are interlaced."""

FIELD_CODED: Final = frozenset({"h264", "mpeg2video", "vc1", "cavs"})
"""Codecs that can code each field by itself. If the order of fields is unknown, they may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The result of reading a container once, without decoding."""

    video: str
    container: str
    codec: str
    coded_width: int
    coded_height: int
    sample_aspect_ratio: Fraction
    aspect_is_containers: bool
    """The ratio takes precedence over those in the stream."""
    time_base: Fraction
    stream_index: int
    size_bytes: int
    start_seconds: float
    """Start of the file: the earliest time of its tracks."""
    packets: PacketIndex
    is_intra_only: bool = False
    """No frame of this codec refers to others."""
    decoder: str | None = None
    """The one to use in place of FFmpeg's own."""
    one_thread: bool = False
    """Frames are followed by fields, which FFmpeg with several threads marks as corrupt."""
    is_edited_out: bool = False
    """An edit list shows none of its packets."""
    warnings: tuple[str, ...] = ()

    def geometry(
        self, frame: VideoFrame, sample_aspect_ratio: Fraction | None = None
    ) -> DisplayGeometry:
        """Return the geometry of a frame, whose side data holds the display matrix.

        Args:
            frame: a decoded frame.
            sample_aspect_ratio: the stream's ratio at this frame; the container's ratio, if its
                format has one, takes precedence.
        """
        rotation_degrees, mirrored = orientation_of(side_data(frame, "DISPLAYMATRIX"))
        return DisplayGeometry(
            coded_width=frame.width,
            coded_height=frame.height,
            sample_aspect_ratio=(
                usable_sample_aspect_ratio(sample_aspect_ratio)
                if sample_aspect_ratio and not self.aspect_is_containers
                else self.sample_aspect_ratio
            ),
            rotation_degrees=rotation_degrees,
            mirrored=mirrored,
        )

    def info(self, geometry: DisplayGeometry) -> VideoInfo:
        """Return the properties of the video, as stored."""
        packets = self.packets
        start_pts = int(packets.pts_N[0])
        span_seconds = float((int(packets.pts_N[-1]) - start_pts) * self.time_base)
        width, height = geometry.display_size
        return VideoInfo(
            video=self.video,
            container=self.container,
            codec=self.codec,
            width=width,
            height=height,
            rotation_degrees=geometry.rotation_degrees,
            time_base=self.time_base,
            start_pts=start_pts,
            duration_seconds=float((packets.end_pts - start_pts) * self.time_base),
            frame_count=int(packets.pts_N.size),
            frame_rate=(packets.pts_N.size - 1) / span_seconds if span_seconds > 0 else None,
            size_bytes=self.size_bytes,
            media_time_seconds=max(0.0, float(start_pts * self.time_base) - self.start_seconds),
        )


def check_dimensions(video: str, width: int, height: int) -> None:
    """Refuse frames that are too large to decode.

    Raises:
        VideoError: the frame is too large; names the size and the limit.
    """
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise VideoError(
            video,
            f"a frame has {width}x{height} pixels; at most {MAX_SIDE} on a side and "
            f"{MAX_PIXELS} in all are decoded",
        )


def scan(source: MediaSource, *, on_progress: Callable[[int], None] = lambda packets: None) -> Scan:
    """Read all packets of a container once, without decoding.

    Args:
        source: what to read.
        on_progress: called with the number of packets seen so far.

    Raises:
        VideoError: it cannot be opened, has no video or no packets, or its frames are too large.
    """
    with open_container(source) as container:
        stream, warnings = choose_track(container, source)
        check_encryption(source, container, stream)
        if needs_dolby(source, container, stream):
            warnings.append(DOLBY_WARNING)
        context = stream.codec_context
        check_dimensions(source.video, context.width, context.height)
        read = _read_packets(container, stream, source, on_progress)
        packets = read.index
        if read.overlapped and packets.restarts and container.format.name.startswith("mov,"):
            share = max(1, round(100 * read.overlapped / len(packets)))
            warnings.append(f"{share}% of the footage is not indexed: {OVERLAPPED}")
        warnings += late_tracks(container)
        warnings += other_codecs(container, source, stream, packets=len(packets))
        warnings += trailing_data(source, container.format.name, read.last_at)
        return Scan(
            video=source.video,
            container=container.format.name,
            codec=stream.codec.canonical_name,
            coded_width=context.width,
            coded_height=context.height,
            sample_aspect_ratio=usable_sample_aspect_ratio(stream.sample_aspect_ratio),
            aspect_is_containers=_tells_aspect(container, stream),
            time_base=stream.time_base or Fraction(1, 1000),
            stream_index=stream.index,
            size_bytes=max(0, container.size),
            start_seconds=start_seconds(container, packets, stream),
            packets=packets,
            is_intra_only=stream.codec.intra_only,
            decoder=_decoder_of(stream),
            is_edited_out=read.is_edited_out,
            warnings=tuple(warnings),
        )


def _decoder_of(stream: VideoStream) -> str | None:
    """Of VP8 and VP9 with transparency, which lies beside the packets: only libvpx looks there."""
    if stream.metadata.get("alpha_mode") != "1":
        return None
    return {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec.canonical_name)


def start_seconds(container: InputContainer, packets: PacketIndex, stream: VideoStream) -> float:
    """Return the time of packets at which a player's clock of this file begins.

    Players show the time line of MP4 and Matroska as it is, with its own zero. Other formats are
    often recorded from a broadcast, whose clock has none: there, the earliest track is at zero.
    """
    first = float(int(packets.pts_N[0]) * (stream.time_base or Fraction(1, 1000)))
    if container.start_time is None or not packets.timestamps_known:
        return first
    has_zero = container.format.name.startswith(("mov,", "matroska"))
    return min(first, 0.0 if has_zero else container.start_time / av.time_base)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packets:
    """All packets of a stream."""

    index: PacketIndex
    last_at: int
    """Offset of the last one in the file; -1 if it is not known."""
    is_edited_out: bool
    """An edit list shows none of them."""
    overlapped: int
    """How many are not shown as their times had passed."""


def _read_packets(
    container: InputContainer,
    stream: VideoStream,
    source: MediaSource,
    on_progress: Callable[[int], None],
) -> _Packets:
    """Read the packets.

    Raises:
        VideoError: there are none, or too many.
    """
    # Arrays are compact: two hours have 180,000 packets, and a Python integer takes 40 bytes.
    pts, dts = array("q"), array("q")
    keys, discards, references = bytearray(), bytearray(), bytearray()
    is_av1 = stream.codec.canonical_name == "av1"
    reader = ReferenceReader(stream.codec_context.extradata) if is_av1 else None
    is_hidden = HIDDEN.get(stream.codec.canonical_name)
    is_mpeg4 = stream.codec.canonical_name == "mpeg4"
    is_packed = False
    last_pts, last_duration, last_at = None, 0, -1
    is_edited_out = True
    for packet in demux(container, stream):
        last_at = max(last_at, -1 if packet.pos is None else packet.pos)
        pts.append(UNKNOWN if packet.pts is None else packet.pts)
        dts.append(UNKNOWN if packet.dts is None else packet.dts)
        keys.append(packet.is_keyframe)
        hidden = is_hidden is not None and is_hidden(memoryview(packet))
        discards.append(packet.is_discard or hidden)
        is_edited_out = is_edited_out and packet.is_discard
        is_packed = is_packed or (is_mpeg4 and bytes(packet).count(_VOP) > 1)
        references.append(reader is None or reader.is_reference(memoryview(packet)))
        if packet.pts is not None and not hidden and (last_pts is None or packet.pts >= last_pts):
            last_pts, last_duration = packet.pts, packet.duration or 0
        on_progress(len(pts))
        if len(pts) > MAX_PACKETS:
            raise VideoError(source.video, f"it has more than {MAX_PACKETS} packets: it is damaged")
    if not pts:
        raise VideoError(source.video, _no_packets_reason(container, stream, source))
    time_base = stream.time_base or Fraction(1, 1000)
    pts_P, dts_P = np.frombuffer(pts, np.int64), np.frombuffer(dts, np.int64)
    discard_P = np.frombuffer(discards, np.bool_)
    # AVI has decoding times only, which pass for presentation times.
    hides_order = bool(stream.codec_context.has_b_frames) and bool((np.diff(pts_P) > 0).all())
    index = build_index(
        pts_P,
        dts_P=dts_P,
        key_P=np.frombuffer(keys, np.bool_),
        discard_P=discard_P,
        reference_P=np.frombuffer(references, np.bool_),
        last_duration=last_duration,
        frame_duration=_frame_duration(stream),
        max_pause=int(MAX_PAUSE_SECONDS / time_base) if _has_one_clock(container) else 0,
        is_plain=_has_whole_frames(stream) and not hides_order,
        expected=len(pts) + _missing(container, stream, len(pts)),
    )
    if is_packed:
        index = replace(index, timestamps_known=False, vouched=True)
    has_passed_P = dts_P[1:] <= np.maximum.accumulate(dts_P)[:-1]
    return _Packets(
        index=index,
        last_at=last_at,
        is_edited_out=is_edited_out,
        overlapped=int((discard_P[1:] & has_passed_P).sum()),
    )


def _no_packets_reason(container: InputContainer, stream: VideoStream, source: MediaSource) -> str:
    """Return a sentence that says why a stream has no packets."""
    if leads_elsewhere(source):
        return PLAYLIST
    is_mp4 = container.format.name.startswith("mov,")
    if is_mp4 and stream.frames and not stream.index_entries:  # what is not shown is left out
        return _EDITED_OUT
    return "its video stream has no packets: the file was cut off, or nothing was recorded"


def _has_whole_frames(stream: VideoStream) -> bool:
    """Return whether no packet holds a single field, by what FFmpeg found in the first ones."""
    order = stream.codec_context.field_order
    return order == PROGRESSIVE or (
        order < PROGRESSIVE and stream.codec.canonical_name not in FIELD_CODED
    )


def _missing(container: InputContainer, stream: VideoStream, read: int) -> int:
    """Return how many packets of the index were not read.

    The index of MP4 and AVI lists every packet; that of other containers only key frames. That of
    MP4 may list fields, of which the demuxer makes one packet for a frame: there only what lies
    beyond the end of the file is missing. In AVI packets whose header is damaged are, too. GXF
    lists fields, with offsets of others.
    """
    entries = stream.index_entries
    if len(entries) <= read or container.format.name == "gxf":
        return 0
    if not container.format.name.startswith("mov,"):
        return len(entries) - read
    beyond = sum(entry.pos >= container.size for entry in entries)
    return round(beyond * read / (len(entries) - beyond)) if beyond < len(entries) else beyond


def _tells_aspect(container: InputContainer, stream: VideoStream) -> bool:
    """Return whether the container holds the sample aspect ratio.

    MP4 and Matroska have one. In others, such as AVI, it is there if the stream has another one.
    """
    ratio = stream.sample_aspect_ratio
    return container.format.name.startswith(("mov,", "matroska")) or (
        ratio is not None and ratio != stream.codec_context.sample_aspect_ratio
    )


def _has_one_clock(container: InputContainer) -> bool:
    """Return whether timestamps are those of a broadcaster's clock, which wraps and is reset."""
    return container.format.name in ("mpegts", "mpeg")


def _frame_duration(stream: VideoStream) -> int:
    """Return a frame's duration at the header's rate, in units of the time base; at least 1."""
    rate = stream.guessed_rate or stream.average_rate
    if not rate or not stream.time_base or rate <= 0:
        return 1
    return max(1, round(1 / (rate * stream.time_base)))


def nothing_decoded_reason(scanned: Scan) -> str:
    """Return a sentence that says why no frame of a video could be decoded."""
    if scanned.coded_width <= 0 or scanned.coded_height <= 0:
        return "its header gives no picture size that can be decoded; the file is damaged"
    if scanned.is_edited_out:
        return _EDITED_OUT
    return (
        f"none of its frames could be decoded as {scanned.codec}; the file is damaged, encrypted "
        "or cut off before its first picture"
    )

"""Choose the video track of a file that is indexed.

The picture size does not decide, because covers have more pixels than many films. Attached covers
and thumbnails are excluded, and so are tracks with few packets. Of the others, the default track
takes precedence, then the one with the most packets.
"""

import re
from collections import Counter
from typing import Any, Final

import av.logging
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from siglip_pipeline.errors import VideoError
from siglip_pipeline.video.boxes import video_entries
from siglip_pipeline.video.container import PLAYLIST, demux, leads_elsewhere, open_container
from siglip_pipeline.video.encryption import check_encryption
from siglip_pipeline.video.source import MediaSource

NO_FILM: Final = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

_VIDEO_TRACK: Final = re.compile(r"^  Stream #0:(\d+)\S*: Video: (\w+)", re.MULTILINE)

FILM_SHARE: Final = 0.1
"""A track with a smaller share of the packets of the largest one holds covers or thumbnails."""


def choose_track(container: InputContainer, source: MediaSource) -> tuple[VideoStream, list[str]]:
    """Return the video stream to decode, and a warning if others are left out.

    Raises:
        VideoError: there is none, or FFmpeg cannot decode it.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        if leads_elsewhere(source):
            raise VideoError(source.video, PLAYLIST)
        held = "only sound" if container.streams.audio else "no video stream"
        raise VideoError(source.video, f"the file holds {held}: there is no frame to index")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        check_encryption(source, container, streams[0])
        reason = (
            "FFmpeg has no decoder for its codec; convert it to MP4 (H.264), or a picture to JPEG"
        )
        raise VideoError(source.video, reason)
    if len(decodable) == 1:
        return decodable[0], []
    packets = _packets_by_stream(source, [stream.index for stream in decodable])
    films = [s for s in decodable if not s.disposition & NO_FILM] or decodable
    fullest = max(packets[stream.index] for stream in films)
    films = [stream for stream in films if packets[stream.index] >= FILM_SHARE * fullest]
    chosen = max(
        films, key=lambda s: (bool(s.disposition & Disposition.default), packets[s.index], -s.index)
    )
    return chosen, _left_out([stream for stream in films if stream is not chosen])


def late_tracks(container: InputContainer) -> list[str]:
    """Return a warning about video tracks that were found while the file was read.

    Broadcasts and live streams begin tracks at any place. PyAV lists those of the beginning only,
    FFmpeg's description all.
    """
    opened: Any = container  # PyAV's types lack the method
    av.logging.set_level(av.logging.INFO)
    try:
        description = opened.dumps_format()
    finally:
        av.logging.set_level(None)
    late = [
        f"track {int(index) + 1} ({codec})"
        for index, codec in _VIDEO_TRACK.findall(description)
        if int(index) >= len(container.streams)
    ]
    return [f"video that begins later in the file is left out: {', '.join(late)}"] if late else []


def other_codecs(
    container: InputContainer, source: MediaSource, stream: VideoStream, *, packets: int
) -> list[str]:
    """Return a warning if a track of MP4 changes its codec: FFmpeg reads the samples of one."""
    if not container.format.name.startswith("mov,") or packets >= stream.frames:
        return []
    with source.open() as file:
        kinds = {kind.decode("latin-1").strip() for kind, *_ in video_entries(file, stream.id)}
    if len(kinds) < 2:
        return []
    share = max(1, round(100 * (1 - packets / stream.frames)))
    names = ", ".join(sorted(kinds))
    return [f"the track changes its codec ({names}): {share}% of the footage is not indexed"]


def _packets_by_stream(source: MediaSource, indices: list[int]) -> Counter[int]:
    """Count the packets of each stream; reads the file once."""
    with open_container(source) as container:
        streams = [container.streams[index] for index in indices]
        videos = [stream for stream in streams if isinstance(stream, VideoStream)]
        return Counter(packet.stream_index for packet in demux(container, *videos))


def _left_out(streams: list[VideoStream]) -> list[str]:
    if not streams:
        return []
    names = ", ".join(
        f"track {s.index + 1} ({s.codec.canonical_name}"
        # Of a track that begins later, the size is not known.
        f"{f' {s.width}x{s.height}' if s.width else ''})"
        for s in streams
    )
    if len(streams) == 1:
        return [f"a second video track is left out: {names}"]
    return [f"{len(streams)} more video tracks are left out: {names}"]

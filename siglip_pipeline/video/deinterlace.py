"""Deinterlace frames as players do: one of the two fields is rebuilt for the other's time."""

from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from typing import Final

import av.error
from av.filter import Graph
from av.video.frame import VideoFrame

_ANY_TIME_BASE: Final = Fraction(1, 1000)
"""The filter does not use times."""


Follows = Callable[[VideoFrame | None, VideoFrame | None], bool]
"""Return whether no frame is missing between two; None stands for what is outside of the video."""


def deinterlaced(
    frames: Iterator[VideoFrame],
    is_wanted: Callable[[VideoFrame], bool],
    follows: Follows = lambda first, second: True,
) -> Generator[VideoFrame, None, None]:
    """Yield the same frames at the same times; wanted frames that are interlaced are rebuilt.

    The filter compares each with the frames before and after it to find motion. Other frames pass
    unchanged. Ends where one of these two is missing.
    """
    last: VideoFrame | None = None
    before: VideoFrame | None = None
    held: VideoFrame | None = None
    for frame in frames:
        if held is not None:
            if not follows(held, frame):
                return
            yield _rebuilt(before, held, frame)
            held = None
        before = last if last is not None and last.interlaced_frame else None
        if frame.interlaced_frame and is_wanted(frame):
            if not follows(last, frame):
                return
            held = frame
        else:
            yield frame
        last = frame
    if held is not None and follows(held, None):
        yield _rebuilt(before, held, None)


def _rebuilt(before: VideoFrame | None, frame: VideoFrame, after: VideoFrame | None) -> VideoFrame:
    """Return the frame with its second field rebuilt; unchanged if the filter refuses it."""
    graph = Graph()
    graph.threads = 1
    try:
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=_ANY_TIME_BASE,
        )
        filtering = graph.add("bwdif", mode="send_frame", deint="all")
        sink = graph.add("buffersink")
        graph.link_nodes(source, filtering, sink).configure()
        for pushed in (_alike(before, frame), frame, _alike(after, frame)):
            source.push(pushed)
        sink.pull()
        progressive = sink.pull()
    except av.error.FFmpegError:
        return frame
    assert isinstance(progressive, VideoFrame)
    progressive.pts = frame.pts
    progressive.colorspace, progressive.color_range = frame.colorspace, frame.color_range
    progressive.color_trc, progressive.color_primaries = frame.color_trc, frame.color_primaries
    return progressive


def _alike(other: VideoFrame | None, frame: VideoFrame) -> VideoFrame:
    """Return a neighbour with the frame's size and format; an empty one if there is none.

    An empty neighbour looks like motion everywhere. The frame itself in its place would look like a
    still, and the filter would leave the comb artefacts.
    """
    kind = frame.width, frame.height, frame.format.name
    if other is not None and (other.width, other.height, other.format.name) == kind:
        return other
    empty = VideoFrame(*kind)
    for plane in empty.planes:
        plane.update(bytes(plane.buffer_size))
    return empty

"""Transformed copies of videos, as people make them: re-encoded, scaled, cropped, cut, sped up."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.filter

RATE = 25


@dataclass(frozen=True, slots=True)
class Transform:
    """How a copy differs from its source."""

    name: str
    filters: tuple[tuple[str, str], ...] = ()
    """FFmpeg filters with their arguments."""
    crf: int = 23
    codec: str = "libx264"
    part: tuple[float, float] = (0.0, 1.0)
    """Start and end of the kept part, as shares of the source."""
    speed: Fraction = Fraction(1)


def _scale(width: str) -> tuple[str, str]:
    return "scale", f"trunc({width}/2)*2:trunc(ow/a/2)*2"


TRANSFORMS = (
    Transform("re-encode", crf=35),
    Transform("scale", (_scale("iw*0.5"),), crf=28),
    Transform("cut", part=(0.3, 0.9), crf=26),
    Transform("crop", (("crop", "trunc(iw*0.4)*2:trunc(ih*0.4)*2"),)),
    Transform("mirror", (("hflip", ""),)),
    Transform("speed", speed=Fraction(3, 2)),
)


def transformed_copy(
    source: Path, target: Path, transform: Transform, *, max_seconds: float = 60.0
) -> Path:
    """Write a copy of a video at 25 frames a second, without sound.

    Args:
        source: the original.
        target: path of the copy; its suffix selects the container.
        transform: how to change it.
        max_seconds: seconds of the source that are read.
    """
    with av.open(str(source)) as reader:
        frames = []
        stream = reader.streams.video[0]
        start = None
        for frame in reader.decode(stream):
            if frame.pts is None or frame.time is None:
                continue
            start = frame.time if start is None else start
            if frame.time - start > max_seconds:
                break
            frames.append((frame.time - start, frame))
    last = frames[-1][0]
    low, high = (share * last for share in transform.part)
    kept = [(time, frame) for time, frame in frames if low <= time <= high]
    graph = av.filter.Graph()
    first = kept[0][1]
    source_node = graph.add_buffer(
        width=first.width,
        height=first.height,
        format=first.format,
        time_base=Fraction(1, RATE),
    )
    nodes = [source_node]
    for name, arguments in (*transform.filters, ("format", "yuv420p")):
        node = graph.add(name, arguments)
        nodes[-1].link_to(node)
        nodes.append(node)
    sink = graph.add("buffersink")
    nodes[-1].link_to(sink)
    graph.configure()
    with av.open(str(target), "w") as writer:
        out: av.VideoStream | None = None
        tick = 0
        for time, frame in kept:
            # A constant rate: as many output frames as fit before the next source frame.
            due = int((time - kept[0][0]) / float(transform.speed) * RATE + 1e-6)
            if due < tick:
                continue
            frame.pts = tick = due
            frame.time_base = Fraction(1, RATE)
            tick += 1
            source_node.push(frame)
            picture = sink.pull()
            assert isinstance(picture, av.VideoFrame)
            if out is None:
                options = {"crf": str(transform.crf), "preset": "fast"}
                added = writer.add_stream(transform.codec, rate=RATE, options=options)
                assert isinstance(added, av.VideoStream)
                out = added
                out.width, out.height, out.pix_fmt = picture.width, picture.height, "yuv420p"
                out.codec_context.time_base = Fraction(1, RATE)
            picture.pts = frame.pts
            picture.time_base = Fraction(1, RATE)
            picture.pict_type = 0
            writer.mux(out.encode(picture))
        assert out is not None
        writer.mux(out.encode(None))
    return target

"""Render sequences of scenes as videos, and the demo's own videos.

A film is a function of its scenes and a seed, so that it can be made again. PyAV is imported when
one is written.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from siglip_pipeline.demo.drawing import Pixels, render_frame
from siglip_pipeline.demo.scenes import ALL_PAIRS, Scene, random_scene

# Part of a film's tag: raise it when a change makes equal scenes look different.
_RENDERER_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoVideo:
    """A rendered video and what it shows at which time."""

    path: Path
    timeline: tuple[tuple[float, float, Scene], ...]
    """``(start_seconds, end_seconds, scene)``, half-open, in order and without gaps."""


def render_video(
    path: str | Path,
    scenes: Sequence[Scene],
    *,
    seconds_per_scene: float | Sequence[float] = 3.0,
    fps: float = 25.0,
    size: tuple[int, int] = (320, 240),
    codec: str = "libx264",
    crf: int = 26,
    gop_seconds: float = 4.0,
    overwrite: bool = True,
) -> DemoVideo:
    """Render the scenes one after the other; the name's suffix chooses the container.

    The film is written under a temporary name in the same folder and renamed when complete, so
    that a watcher never sees half of one.

    Args:
        path: where to; an existing file is replaced.
        scenes: in order.
        seconds_per_scene: one length for all, or one for each scene; rounded to whole frames.
        fps: frames a second.
        size: width and height in pixels, even.
        codec: name of an FFmpeg encoder, e.g. ``libx264``, ``libvpx-vp9``, ``mpeg4``.
        crf: constant quality for the encoders that have it; higher is worse.
        gop_seconds: distance between key frames. Scene cuts get none of their own, as in a
            stream that was encoded live.
        overwrite: False keeps an existing file if it was rendered from equal arguments, which
            its ``comment`` tag tells.

    Raises:
        ValueError: no scenes, lengths that do not match them, or an odd width or height.
    """
    target = Path(path)
    lengths = _scene_lengths(scenes, seconds_per_scene)
    if size[0] % 2 or size[1] % 2:
        raise ValueError(f"size {size} must be even in both directions for 4:2:0 video")
    rate = Fraction(fps).limit_denominator(1001)
    counts = [max(1, round(length * rate)) for length in lengths]
    film = DemoVideo(path=target, timeline=_timeline(scenes, counts, rate))
    recipe = repr((_RENDERER_VERSION, scenes, counts, rate, size, codec, crf, gop_seconds))
    tag = f"siglip-pipeline demo {hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not overwrite and target.exists() and _comment(target) == tag:
        return film
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    options = _encoder_options(codec, crf=crf, gop=max(1, round(gop_seconds * rate)))
    try:
        _encode(part, _frames(scenes, counts, size), rate, size, codec, options, tag)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return film


def _scene_lengths(scenes: Sequence[Scene], seconds: float | Sequence[float]) -> list[float]:
    if not scenes:
        raise ValueError("scenes is empty; a film needs at least one")
    if isinstance(seconds, (int, float)):
        return [float(seconds)] * len(scenes)
    if len(seconds) != len(scenes):
        raise ValueError(
            f"seconds_per_scene has {len(seconds)} lengths for {len(scenes)} scenes; "
            "give one number, or one for each scene"
        )
    return [float(s) for s in seconds]


def _timeline(
    scenes: Sequence[Scene], counts: Sequence[int], rate: Fraction
) -> tuple[tuple[float, float, Scene], ...]:
    """Return start and end of each scene in the file, on frame boundaries."""
    rows, done = [], 0
    for scene, count in zip(scenes, counts, strict=True):
        rows.append((float(done / rate), float((done + count) / rate), scene))
        done += count
    return tuple(rows)


def _frames(
    scenes: Sequence[Scene], counts: Sequence[int], size: tuple[int, int]
) -> Iterator[Pixels]:
    for scene, count in zip(scenes, counts, strict=True):
        for number in range(count):
            yield render_frame(scene, moment=(number + 0.5) / count, size=size, frame=number)


def _comment(path: Path) -> str | None:
    """Return the file's ``comment`` tag; None if it has none or is no video."""
    import av  # imported late: stills need no FFmpeg

    try:
        with av.open(str(path)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (av.FFmpegError, OSError):
        return None
    return tags.get("comment")


def _encoder_options(codec: str, *, crf: int, gop: int) -> dict[str, str]:
    if codec in ("libx264", "libx265"):
        return {"g": str(gop), "crf": str(crf), "preset": "superfast", "sc_threshold": "0"}
    if codec == "libvpx-vp9":
        return {"g": str(gop), "crf": str(crf), "b": "0", "deadline": "realtime", "cpu-used": "8"}
    return {"g": str(gop), "b": "1500000"}


def _encode(
    path: Path,
    frames: Iterator[Pixels],
    rate: Fraction,
    size: tuple[int, int],
    codec: str,
    options: dict[str, str],
    comment: str,
) -> None:
    import av  # here, because rendering stills must not need FFmpeg

    # bitexact leaves out the date and the random ids that would make equal films differ.
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        container.metadata["comment"] = comment
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        # Threads would make some encoders' output depend on the number of cores.
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


# File, encoder, frames a second, size: a small sample of typical uploads.
_DEMO_FILMS: tuple[tuple[str, str, float, tuple[int, int]], ...] = (
    ("reel-1.mp4", "libx264", 12, (320, 240)),
    ("reel-2.mp4", "libx264", 15, (320, 180)),
    ("reel-3.mkv", "libx264", 12.5, (256, 256)),
    ("reel-4.webm", "libvpx-vp9", 8, (320, 240)),
    ("more/reel-5.mp4", "mpeg4", 10, (320, 240)),
)


_SCENES_PER_FILM = 8


def demo_scenes(*, seed: int = 0) -> tuple[Scene, ...]:
    """Return the scenes of the demo's videos; no two share a pair of colour and shape.

    Each caption is therefore true of one scene only.
    """
    rng = np.random.default_rng(seed)
    unused = [ALL_PAIRS[int(i)] for i in rng.permutation(len(ALL_PAIRS))]
    scenes: list[Scene] = []
    for number in range(len(_DEMO_FILMS) * _SCENES_PER_FILM):
        scene = random_scene(rng, pairs=unused, objects=1 if number % 3 else 2)
        scenes.append(scene)
        used = {item.pair for item in scene.objects}
        unused = [pair for pair in unused if pair not in used]
    return tuple(scenes)


def render_demo_videos(folder: str | Path, *, seed: int = 0) -> list[DemoVideo]:
    """Render the demo's sample videos: 5 files of 8 scenes, 2 to 4 seconds each.

    They differ in container, codec, frame rate and aspect ratio. An existing file that was rendered
    from the same scenes is kept.

    Args:
        folder: where to; made if missing.
        seed: another seed gives other scenes.
    """
    return [
        render_video(
            Path(folder) / name,
            scenes,
            seconds_per_scene=seconds,
            fps=fps,
            size=size,
            codec=codec,
            overwrite=False,
        )
        for (name, codec, fps, size), scenes, seconds in _demo_plan(seed)
    ]


def demo_timelines() -> dict[str, tuple[tuple[float, float, Scene], ...]]:
    """Return what the demo's videos show at which time, by file, without rendering them."""
    timelines = {}
    for (name, _, fps, _), scenes, seconds in _demo_plan(seed=0):
        rate = Fraction(fps).limit_denominator(1001)
        counts = [max(1, round(length * rate)) for length in seconds]
        timelines[name] = _timeline(scenes, counts, rate)
    return timelines


def _demo_plan(
    seed: int,
) -> Iterator[tuple[tuple[str, str, float, tuple[int, int]], tuple[Scene, ...], list[float]]]:
    """Yield each file with its scenes and their lengths in seconds."""
    rng = np.random.default_rng(seed + 1)
    scenes = demo_scenes(seed=seed)
    for number, film in enumerate(_DEMO_FILMS):
        chosen = scenes[number * _SCENES_PER_FILM : (number + 1) * _SCENES_PER_FILM]
        yield film, chosen, [float(s) for s in rng.choice([2.0, 3.0, 4.0], size=len(chosen))]

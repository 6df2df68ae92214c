"""Small videos of every kind that Debian's ffmpeg makes: what is combined, and how it is made."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from siglip_pipeline_tests.video.ffmpeg_reference import ffmpeg
from siglip_pipeline_tests.video.rendering import ONE_THREAD

WIDTH, HEIGHT, RATE, FRAMES = 64, 48, 25, 14
COUNT: Final = 360
"""How many of the combinations are looked at in all."""

PICTURES: Final = (
    f"testsrc2=s={WIDTH}x{HEIGHT}:r={2 * RATE}:d={FRAMES / RATE},"
    "eq=brightness='0.2*sin(2.4*floor(n/2))':eval=frame"
)
"""A picture per field; neighbouring frames are told apart by their brightness in every codec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One video."""

    codec: str
    container: str
    timing: str = "constant"
    interlacing: str = "progressive"
    rotation: int = 0
    pixel_format: str = "yuv420p"
    shape: str = "1/1"

    @property
    def name(self) -> str:
        """Its file name, which tells all of it."""
        parts = (
            self.codec,
            self.timing,
            self.interlacing,
            f"turned{self.rotation}",
            self.pixel_format,
            self.shape.replace("/", "to"),
        )
        return f"{'-'.join(parts)}.{self.container}"


CONTAINERS: Final = {
    "libx264": "mp4 mov mkv ts m2ts avi flv nut 3gp h264",
    "libx264rgb": "mkv",
    "libx265": "mp4 mkv ts hevc",
    "mpeg2video": "ts mpg vob mkv mov mxf m2v",
    "mpeg1video": "mpg mkv",
    "mpeg4": "mp4 mov avi mkv 3gp m4v",
    "msmpeg4v2": "avi",
    "wmv2": "wmv",
    "flv": "flv",
    "h263p": "avi",
    "libvpx": "webm mkv ivf",
    "libvpx-vp9": "webm mp4 ivf",
    "libaom-av1": "mp4 webm ivf obu",
    "libtheora": "ogg",
    "mjpeg": "avi mov mkv",
    "prores_ks": "mov mkv",
    "ffv1": "mkv avi nut",
    "png": "mov",
    "qtrle": "mov",
    "utvideo": "avi",
    "huffyuv": "avi",
    "cinepak": "avi",
    "rawvideo": "avi mov nut",
    "wrapped_avframe": "y4m",
    "rv20": "rm",
    "snow": "avi",
    "vc2": "mov",
}

PIXEL_FORMATS: Final = {
    "libx264": "yuv420p yuv422p yuv444p yuv420p10le gray yuvj420p",
    "libx264rgb": "rgb24",
    "libx265": "yuv420p yuv420p10le yuv444p12le",
    "mpeg2video": "yuv420p yuv422p",
    "libvpx-vp9": "yuv420p yuv444p yuv420p10le",
    "libaom-av1": "yuv420p yuv420p10le",
    "mjpeg": "yuvj420p yuvj422p yuvj444p",
    "prores_ks": "yuv422p10le yuv444p10le",
    "ffv1": "yuv420p yuv411p gray16le bgr0 gbrp10le yuv440p yuv410p",
    "png": "rgb24 gray rgb48be monob pal8",
    "qtrle": "rgb24 rgb555be gray",
    "utvideo": "yuv422p gbrp",
    "huffyuv": "yuv422p rgb24",
    "cinepak": "rgb24",
    "rawvideo": "uyvy422",
    "rawvideo.avi": "yuv420p bgr24 uyvy422",
    "rawvideo.mov": "uyvy422 rgb24",
    "rawvideo.nut": "yuv420p bgr24 gray16le",
    "vc2": "yuv422p",
}

OPTIONS: Final = {
    "libx265": ["-x265-params", f"log-level=none:{ONE_THREAD}", "-preset", "ultrafast"],
    "libaom-av1": ["-cpu-used", "8", "-usage", "realtime", "-row-mt", "0"],
    "libvpx": ["-deadline", "realtime", "-cpu-used", "8", "-b:v", "400k"],
    "libvpx-vp9": ["-deadline", "realtime", "-cpu-used", "8", "-b:v", "400k"],
    "libtheora": ["-q:v", "8"],
    "snow": ["-strict", "-2", "-q:v", "3"],
    "vc2": ["-strict", "-2", "-b:v", "8M"],
    "qtrle": ["-g", "6"],
}
QUANTIZED: Final = (
    *("mpeg2video", "mpeg1video", "mpeg4", "msmpeg4v2", "wmv2", "flv", "h263p", "mjpeg", "rv20"),
)

B_FRAMES: Final = ("libx264", "libx265", "mpeg2video", "mpeg4")
OPEN_GOPS: Final = ("libx264", "mpeg2video")
JOINED_LATE: Final = ("libx264", "libx265", "mpeg2video")
"""Codecs of broadcasts, whose recordings begin between key frames."""
HIDDEN: Final = ("libvpx", "libvpx-vp9")
INTERLACED: Final = ("libx264", "mpeg2video", "prores_ks")

WITHOUT_TIMES: Final = ("h264", "hevc", "m2v", "m4v", "y4m", "obu")
ONE_RATE: Final = (*WITHOUT_TIMES, "avi", "mxf", "rm", "ivf", "ogg")
EDITED: Final = ("mp4", "mov", "3gp")

TIMINGS: Final = {
    "constant": "null",
    "variable": "settb=1/1000,setpts='20*N+7*N*N'",
    "gap": "settb=1/1000,setpts='40*N+30000*gte(N,6)'",
}
"""How the filter goes that makes them; other time structures are made by encoders and muxers."""


def combinations() -> list[Combination]:
    """Return those that are looked at: each feature by itself, and some that meet."""
    alone: list[Combination] = []
    together: list[Combination] = []
    for codec, containers in CONTAINERS.items():
        for container in containers.split():
            timings = list(_timings(codec, container))
            formats: Any = PIXEL_FORMATS.get(
                f"{codec}.{container}", PIXEL_FORMATS.get(codec, "yuv420p")
            )
            formats = formats.split()
            interlacings = ["progressive", *(("tff", "bff") if codec in INTERLACED else ())]
            rotations = [0, *((90, 180, 270) if container in ("mp4", "mov") else ())]
            shapes = ["1/1", *(("2/1", "1/2") if container in ("mp4", "mov", "mkv", "ts") else ())]
            axes = (timings, interlacings, rotations, formats, shapes)
            for values in itertools.product(*axes):
                usual = sum(value == axis[0] for value, axis in zip(values, axes, strict=True))
                (alone if usual >= len(axes) - 1 else together).append(
                    Combination(
                        codec=codec,
                        container=container,
                        timing=values[0],
                        interlacing=values[1],
                        rotation=values[2],
                        pixel_format=values[3],
                        shape=values[4],
                    )
                )
    more = random.Random(1).sample(together, max(0, COUNT - len(alone)))
    return alone + more


def _timings(codec: str, container: str) -> Iterator[str]:
    yield "constant"
    if container not in ONE_RATE and codec not in ("mpeg2video", "mpeg1video"):
        yield from ("variable", "gap")
    if container not in WITHOUT_TIMES:
        yield "offset"
    if codec in B_FRAMES:
        yield "bframes"
    if codec in OPEN_GOPS:
        yield "opengop"
    if codec in JOINED_LATE and container == "ts":
        yield "midcut"
    if codec in HIDDEN:
        yield "altref"
    if container in EDITED:
        yield "edited"
        yield "fragmented"


def make(wanted: Sequence[Combination], folder: Path) -> list[Path]:
    """Make the files, in few calls of ffmpeg."""
    outputs: list[str | Path] = []
    cuts: list[tuple[Path, Path]] = []
    for one in wanted:
        path = folder / one.name
        whole = path
        if one.timing == "edited":
            whole = folder / f"whole-{one.name}"
            cuts.append((whole, path))
        outputs += _output(one, whole)
    ffmpeg("-f", "lavfi", "-i", PICTURES, *outputs)
    if cuts:
        inputs: list[str | Path] = []
        copies: list[str | Path] = []
        for number, (whole, cut) in enumerate(cuts):
            inputs += ["-ss", "0.35", "-i", whole]
            copies += ["-map", str(number), "-c", "copy", cut]
        ffmpeg(*inputs, *copies)
    paths = [folder / one.name for one in wanted]
    for one, path in zip(wanted, paths, strict=True):
        if one.timing == "midcut":
            raw = path.read_bytes()
            path.write_bytes(raw[len(raw) // 3 // 188 * 188 :])
    return paths


def _output(one: Combination, path: Path) -> list[str | Path]:
    fields = one.interlacing != "progressive"
    frames = f"interlace=scan={one.interlacing}" if fields else "framestep=2"
    filters = [frames, TIMINGS.get(one.timing, "null"), f"setsar={one.shape}"]
    options: list[str] = ["-c:v", one.codec, "-threads", "1", *OPTIONS.get(one.codec, [])]
    if one.codec in QUANTIZED:
        options += ["-q:v", "3"]
    if fields:
        filters.append("scale=interl=1")
        options += _interlaced(one)
    if one.timing in ("bframes", "opengop", "midcut"):
        options += ["-bf", "2", "-g", "5"]
        if one.timing in ("opengop", "midcut") and one.codec in OPEN_GOPS:
            closed = one.codec != "libx264"
            options += ["-flags", "-cgop"] if closed else ["-x264-params", "open-gop=1:keyint=5"]
    elif one.codec in B_FRAMES:
        options += ["-bf", "0", "-g", "8"]
    if one.timing == "altref":
        options += ["-auto-alt-ref", "1", "-lag-in-frames", "8", "-deadline", "good"]
    if one.timing in ("variable", "gap"):
        options += ["-fps_mode", "passthrough", "-enc_time_base", "1:1000"]
    if one.timing == "offset":
        options += ["-output_ts_offset", "7.25"]
    if one.timing == "fragmented":
        options += ["-movflags", "frag_keyframe+empty_moov"]
    if one.rotation:
        options += ["-metadata:s:v", f"rotate={one.rotation}"]
    filters.append(f"format={one.pixel_format}")
    return ["-map", "0:v", "-vf", ",".join(filters), *options, path]


def _interlaced(one: Combination) -> list[str]:
    first = one.interlacing
    if one.codec == "libx264":
        return ["-x264opts", f"{first}=1"]
    if one.codec == "prores_ks":
        return ["-flags", "+ildct", "-top", "1" if first == "tff" else "0"]
    return ["-flags", "+ildct+ilme", "-top", "1" if first == "tff" else "0"]

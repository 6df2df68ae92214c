"""Videos made for tests: every frame carries its number as blocks that survive lossy coding."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

BITS = 12
BLOCK = 8


def numbered_picture(number: int, *, width: int = 160, height: int = 96) -> NDArray[np.uint8]:
    """A moving pattern [H, W, C] with ``number`` written in its top row of blocks."""
    y, x = np.ogrid[0:height, 0:width]
    wave = 128 + 100 * np.sin((np.arange(height + width - 1) + 5 * number) / 17)
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = (x + 3 * number) % 256
    picture[..., 1] = (2 * y + number) % 256
    picture[..., 2] = sliding_window_view(wave.astype(np.uint8), width)  # the wave at x + y
    top = height // 3 + int(height / 6 * np.sin(number / 9))
    picture[top : top + 16, (7 * number) % (width - 16) :][:, :16] = (250, 40, 60)
    picture[: BLOCK + 2] = 0
    for bit in range(BITS):
        if number >> bit & 1:
            picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255
    return picture


def read_number(pixels_HWC: NDArray[np.uint8]) -> int:
    """The number in a picture made by :func:`numbered_picture`."""
    blocks = pixels_HWC[2 : BLOCK - 2, : BITS * BLOCK].astype(float).mean(axis=(0, 2))
    bits = blocks.reshape(BITS, BLOCK)[:, 2:-2].mean(axis=1) > 128
    return int(sum(1 << bit for bit, is_set in enumerate(bits) if is_set))


ONE_THREAD = "pools=1:frame-threads=1"
"""x265 with threads gives two frames the same decoding time, once in a few hundred short films on
a busy machine; no file can be made of these."""


def render(
    path: Path,
    *,
    codec: str = "libx264",
    frames: int = 60,
    width: int = 160,
    height: int = 96,
    rate: int = 25,
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    pixel_format: str = "yuv420p",
    sample_aspect_ratio: Fraction | None = None,
    rotation: tuple[int, bool, bool] | None = None,
    container_options: dict[str, str] | None = None,
    container_format: str | None = None,
    pictures: Sequence[NDArray[np.uint8]] | None = None,
    **context: Any,
) -> Path:
    """Encode numbered pictures, or those given.

    Args:
        path: where to write; the suffix decides on the container.
        pts: timestamps in ``time_base`` units; one frame each by default.
        rotation: counter-clockwise degrees, horizontal and vertical flip, as metadata.
        context: attributes of the codec context, such as ``color_trc``.
    """
    time_base = time_base or Fraction(1, rate)
    options = dict(options or {})
    if codec in ("libx264", "libx265"):
        options.setdefault("preset", "veryfast")  # it has B-frames, and takes a third of the time
    if codec == "libx265":
        options["x265-params"] = ":".join(filter(None, (options.get("x265-params"), ONE_THREAD)))
    with av.open(
        str(path), "w", format=container_format, options=container_options or {}
    ) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = time_base
        if sample_aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        for number in range(frames if pictures is None else len(pictures)):
            pixels = (
                numbered_picture(number, width=width, height=height)
                if pictures is None
                else pictures[number]
            )
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if pts is None else pts[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame.reformat(format=pixel_format)))
        container.mux(stream.encode(None))
    return path

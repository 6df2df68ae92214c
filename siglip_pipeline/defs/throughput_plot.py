"""Plot the throughput of an embedding run, as a picture for the Dagster UI."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from siglip_pipeline.siglip.engine_report import ThroughputPoint

WIDTH, HEIGHT = 560, 220
LEFT, TOP, RIGHT, BOTTOM = 58, 30, 16, 30
LINE, FILL, INK, GRID = (31, 119, 180), (214, 230, 242), (60, 60, 60), (225, 225, 225)


def throughput_plot(points: Sequence[ThroughputPoint]) -> bytes:
    """Return a PNG of frames per second over the seconds of a run; both axes begin at zero.

    Args:
        points: one per interval of the run, in time order.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    draw.text((LEFT, 8), "frames per second", INK, font)
    most = max((point.frames_per_second for point in points), default=0.0) * 1.1 or 1.0
    end = max((point.seconds for point in points), default=0.0) or 1.0
    base = HEIGHT - BOTTOM
    for share in (0.0, 0.5, 1.0):
        y = base - share * (base - TOP)
        draw.line((LEFT, y, WIDTH - RIGHT, y), GRID)
        draw.text((6, y - 7), f"{share * most:,.0f}", INK, font)
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        draw.text((min(x, WIDTH - RIGHT - 40), base + 8), f"{share * end:,.0f} s", INK, font)
    began = 0.0
    for point in points:
        left = LEFT + began / end * (WIDTH - LEFT - RIGHT)
        right = LEFT + point.seconds / end * (WIDTH - LEFT - RIGHT)
        top = base - point.frames_per_second / most * (base - TOP)
        draw.rectangle((left, top, max(left, right), base), FILL)
        draw.line((left, top, right, top), LINE, width=2)
        began = point.seconds
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

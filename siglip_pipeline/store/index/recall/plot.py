"""Plot recall against latency, drawn with Pillow alone."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from siglip_pipeline.store.index.recall.recall_report import RecallCase, RecallReport
from siglip_pipeline.text.in_words import counted

WIDTH, HEIGHT = 560, 320
LEFT, TOP, RIGHT, BOTTOM = 58, 34, 20, 44
COLOURS = {"picture": (31, 119, 180), "text": (214, 95, 14)}
INK, GRID = (60, 60, 60), (225, 225, 225)


def recall_plot(report: RecallReport) -> bytes:
    """Return a PNG of recall@10 by median latency: a point per effort, a line per modality."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    points = report.sweep or tuple(case for case in report.cases if case.share == 1)
    title = f"{report.kind}, {counted(report.frames, 'frame')}: recall@10 against latency"
    draw.text((LEFT, 10), title, INK, font)
    if not points:
        draw.text((LEFT, HEIGHT // 2), "nothing was measured", INK, font)
        return _png(image)
    axes = _Axes(points)
    axes.draw(draw, font)
    for row, (modality, colour) in enumerate(COLOURS.items()):
        line = [case for case in points if case.modality == modality]
        places = [axes.place(case) for case in line]
        if len(places) > 1:
            draw.line(places, colour, width=2)
        for case, (x, y) in zip(line, places, strict=True):
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
            draw.text((x + 5, y + 3), str(case.ef_search), colour, font)
        if line:
            draw.text((WIDTH - RIGHT - 90, HEIGHT - BOTTOM - 36 + 15 * row), modality, colour, font)
    return _png(image)


class _Axes:
    """Map a case to a position in the picture."""

    def __init__(self, points: Sequence[RecallCase]) -> None:
        self.most_ms = max(1000 * case.p50_seconds for case in points) * 1.15
        lowest = min(case.recall_at_10 for case in points)
        # Steps of 0.05 with a margin below, so that small differences do not fill the plot.
        self.least = max(0.0, min(0.9, int(lowest * 20 - 0.5) / 20))

    def x(self, milliseconds: float) -> float:
        return LEFT + milliseconds / self.most_ms * (WIDTH - LEFT - RIGHT)

    def y(self, recall: float) -> float:
        return TOP + (1 - recall) / (1 - self.least) * (HEIGHT - TOP - BOTTOM)

    def place(self, case: RecallCase) -> tuple[float, float]:
        return self.x(1000 * case.p50_seconds), self.y(case.recall_at_10)

    def draw(
        self, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    ) -> None:
        for step in range(6):
            recall = self.least + (1 - self.least) * step / 5
            y = self.y(recall)
            draw.line((LEFT, y, WIDTH - RIGHT, y), GRID)
            draw.text((16, y - 7), f"{recall:.2f}", INK, font)
            milliseconds = self.most_ms * step / 5
            draw.text(
                (self.x(milliseconds) - 10, HEIGHT - BOTTOM + 6), f"{milliseconds:.1f}", INK, font
            )
        draw.line((LEFT, TOP, LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM), INK)
        draw.text((WIDTH // 2 - 60, HEIGHT - 20), "median milliseconds", INK, font)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

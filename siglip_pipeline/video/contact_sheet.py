"""Draw contact sheets: a few thumbnails of a video in one picture."""

import io
import math
from collections.abc import Sequence
from typing import Final

from PIL import Image

from siglip_pipeline.records import IntArray

COLUMNS: Final = 4
CELL_SIDE: Final = 160
GAP: Final = 4
BACKGROUND: Final = (24, 24, 24)
QUALITIES: Final = (80, 65, 50, 35, 20)


def evenly_spaced(positions_N: IntArray, count: int) -> list[int]:
    """Return at most ``count`` of the positions: the middles of equal parts, in order."""
    n = positions_N.size
    if n <= count:
        return [int(position) for position in positions_N]
    return [int(positions_N[(2 * k + 1) * n // (2 * count)]) for k in range(count)]


def contact_sheet(jpegs: Sequence[bytes], *, max_bytes: int) -> bytes:
    """Return a JPEG of at most ``max_bytes`` with the pictures in rows of four.

    Raises:
        ValueError: there are no pictures, or ``max_bytes`` is too small for them.
    """
    if not jpegs:
        raise ValueError("a contact sheet needs at least one picture")
    side = CELL_SIDE
    while side >= 16:
        sheet = _draw(jpegs, side)
        for quality in QUALITIES:
            buffer = io.BytesIO()
            sheet.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
        side = side * 2 // 3
    raise ValueError(f"max_bytes={max_bytes} is too little for {len(jpegs)} pictures; give 4,000")


def _draw(jpegs: Sequence[bytes], side: int) -> Image.Image:
    cells = []
    for jpeg in jpegs:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            # libjpeg shrinks while decoding, to no less than this; it averages as a resize does.
            scale = side / max(picture.size)
            picture.draft("RGB", (int(picture.width * scale), int(picture.height * scale)))
            cell = picture.convert("RGB")
        cell.thumbnail((side, side))
        cells.append(cell)
    columns = min(COLUMNS, len(cells))
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    rows = math.ceil(len(cells) / columns)
    size = (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    for k, cell in enumerate(cells):
        x = GAP + (k % columns) * (width + GAP) + (width - cell.width) // 2
        y = GAP + (k // columns) * (height + GAP) + (height - cell.height) // 2
        sheet.paste(cell, (x, y))
    return sheet

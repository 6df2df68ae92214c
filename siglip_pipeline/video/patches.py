"""Compose animations from patches, as GIF and animated PNG do.

Pillow decodes each patch as a still. Its own compositing has two faults: the default image of an
animated PNG shows through the frames, and areas that a GIF clears get a colour, not transparency.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Literal

from PIL import Image, ImageFile

from siglip_pipeline.video.cut_off import rows_read
from siglip_pipeline.video.still_pixels import eight_bits
from siglip_pipeline.video.transparent_colour import with_transparent_colour

Disposal = Literal["keep", "clear", "restore"]
"""What happens to a patch before the next is drawn: it stays, its area becomes transparent, or its
area is restored to what was there before."""

CLEAR: Final = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One step of an animation."""

    spans: tuple[tuple[int, int], ...]
    """Offset and size of each piece of its data."""
    as_file: Callable[[bytes], bytes]
    """Return a file that holds the patch alone, given its data."""
    left: int
    top: int
    size: tuple[int, int]
    duration_ms: int
    disposal: Disposal
    replaces: bool = False
    """Its transparent pixels clear what is below them."""

    def image(self, file: BinaryIO, format: str) -> Image.Image:
        """Decode the patch as RGBA."""
        data = bytearray()
        for offset, size in self.spans:
            file.seek(offset)
            data += file.read(size)
        alone = io.BytesIO(self.as_file(bytes(data)))
        with Image.open(alone, formats=(format,)) as opened:
            image = with_transparent_colour(opened, alone)
            image.load()
            plain = eight_bits(image) if image.mode.startswith("I") else image
            if not ImageFile.LOAD_TRUNCATED_IMAGES:
                return plain.convert("RGBA")
            # Missing rows show the picture below.
            return plain.crop((0, 0, plain.width, rows_read(plain))).convert("RGBA")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedAnimation:
    """An animation that was parsed, but not decoded."""

    format: str
    size: tuple[int, int]
    patches: tuple[Patch, ...]
    expected: int
    """Frames that the header promises; more than there are when the file was cut off."""
    info: dict[str, Any] = field(default_factory=dict)
    """Colours and orientation of all frames, by Pillow's names."""

    @property
    def pixels(self) -> int:
        """Number of pixels that are decoded or drawn for all frames."""
        width, height = self.size
        return sum(max(width * height, patch.size[0] * patch.size[1]) for patch in self.patches)

    def frames(self, file: BinaryIO, last: int) -> Iterator[Image.Image]:
        """Yield the frames from the first to ``last``; the next one overwrites the canvas."""
        canvas = Image.new("RGBA", self.size, CLEAR)
        for patch in self.patches[: last + 1]:
            before = canvas.copy() if patch.disposal == "restore" else None
            drawn = patch.image(file, self.format)
            at = patch.left, patch.top
            if patch.replaces:
                canvas.paste(drawn, at)
            else:
                canvas.alpha_composite(drawn, at)
            canvas.info.update(self.info)
            yield canvas
            if before is not None:
                canvas = before
            elif patch.disposal == "clear":
                right, bottom = patch.left + drawn.width, patch.top + drawn.height
                canvas.paste(CLEAR, (patch.left, patch.top, right, bottom))

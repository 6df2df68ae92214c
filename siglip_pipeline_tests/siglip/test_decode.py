"""Pictures to pixels: the fast way to a JPEG gives what Pillow gives, and Pillow does the rest."""

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from siglip_pipeline.siglip import jpeg_decoding as decoding
from siglip_pipeline.siglip.jpeg_decoding import DRAFT_MARGIN, decode
from siglip_pipeline.siglip.recipe import Recipe
from siglip_pipeline_tests.siglip.conftest import jpeg, picture, real_jpegs


def recipe(size: int) -> Recipe:
    return Recipe(
        family="siglip",
        resample="bilinear",
        scale=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        patch_size=16,
        size=size,
        max_num_patches=None,
        text_length=64,
    )


def by_pillow(data: bytes, size: int) -> Any:
    opened = Image.open(io.BytesIO(data))
    opened.draft("RGB", (size * DRAFT_MARGIN, size * DRAFT_MARGIN))
    return np.array(opened.convert("RGB"))


def encoded(mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(359, 641)).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("size", [16, 40, 72, 256])
@pytest.mark.parametrize(
    "data",
    [
        *real_jpegs()[:3],
        encoded(subsampling=0),
        encoded(subsampling=1, progressive=True),
        encoded(subsampling=2),
        encoded("L"),
        encoded("CMYK"),
    ],
)
def test_a_jpeg_has_the_pixels_that_pillow_gives(data: bytes, size: int) -> None:
    pixels, whole = decode(data, recipe(size))
    assert whole == Image.open(io.BytesIO(data)).size[::-1]
    np.testing.assert_array_equal(pixels, by_pillow(data, size))


@pytest.mark.parametrize(
    ("size", "expected"), [(256, (432, 768)), (72, (216, 384)), (36, (108, 192)), (18, (54, 96))]
)
def test_a_jpeg_is_decoded_at_a_fraction_that_leaves_the_margin(
    size: int, expected: tuple[int, int]
) -> None:
    pixels, whole = decode(jpeg(picture(432, 768)), recipe(size))
    assert (pixels.shape, whole) == ((*expected, 3), (432, 768))


def test_stored_frames_go_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any) -> Any:
        raise AssertionError("a plain JPEG was read by Pillow")

    monkeypatch.setattr(decoding, "_rgb", slow)
    decode(jpeg(picture(432, 768)), recipe(72))


def test_what_the_fast_way_refuses_pillow_may_still_read() -> None:
    # Rubbish between the parts of a file: an error to the one, not to the other.
    data = jpeg(picture(100, 160))
    odd = data[:20] + b"\x00" * 3 + data[20:]
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(odd)
    np.testing.assert_array_equal(decode(odd, recipe(72))[0], by_pillow(data, 72))


@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_half_a_jpeg_is_an_error(kept: float) -> None:
    data = jpeg(picture(432, 768))
    with pytest.raises(ValueError, match="not a picture that can be read"):
        decode(data[: int(len(data) * kept)], recipe(72))

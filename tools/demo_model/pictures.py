"""The pictures that the demo model is trained on: rendered scenes, compressed as the pipeline does.

Shape legend: N pictures, S side of the square input, O objects of a scene, P its numbers.
"""

import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siglip_pipeline.demo.drawing import Pixels, object_centre, render_frame
from siglip_pipeline.demo.scenes import SEEN_PAIRS, Scene, random_scene
from siglip_pipeline.records import FloatArray
from tools.demo_model.recipe import Recipe

_SIZES = ((160, 120), (160, 90), (128, 128), (144, 108), (176, 132))


_CHUNK = 64


def _through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _through_h264(frames: Sequence[Pixels], crf: int) -> list[Pixels]:
    """Encode the frames with x264 in memory and decode them again."""
    import av  # here, because only the workers that render need it

    height, width = frames[0].shape[:2]
    buffer = BytesIO()
    with av.open(buffer, "w", format="matroska") as film:
        options = {"crf": str(crf), "preset": "superfast", "g": "8", "sc_threshold": "0"}
        stream: Any = film.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        film.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        decoded: list[Any] = list(container.decode(video=0))
    return [np.asarray(frame.to_image()) for frame in decoded]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Rendered pictures and all that is known of them; mirror images are not among them."""

    scenes: list[Scene]
    pixels_NSSC: NDArray[np.uint8]
    places_NOP: NDArray[np.float32]
    """Of each of up to three objects: middle x, y and half extent x, y, as shares of the picture.
    Zeros where there is no object."""


def _places(scenes: Sequence[Scene], moments: Sequence[float], aspect: float) -> FloatArray:
    places_NOP = np.zeros((len(scenes), 3, 4), np.float32)
    for n, (scene, moment) in enumerate(zip(scenes, moments, strict=True)):
        for o, item in enumerate(scene.objects):
            x, y = object_centre(item, moment=moment, aspect=aspect)
            places_NOP[n, o] = x, y, item.radius / aspect, item.radius
    return places_NOP


def _render_chunk(seed: int, chunk: int, side: int) -> Pool:
    """Render scenes of one size, compressed and resized as the pipeline does."""
    rng = np.random.default_rng((seed, 1, chunk))
    size = _SIZES[int(rng.integers(len(_SIZES)))]
    scenes = [random_scene(rng, pairs=SEEN_PAIRS) for _ in range(_CHUNK)]
    moments = rng.random(_CHUNK).tolist()
    frames = [
        render_frame(scene, moment=moment, size=size, frame=number)
        for number, (scene, moment) in enumerate(zip(scenes, moments, strict=True))
    ]
    if rng.random() < 0.5:
        frames = _through_h264(frames, crf=int(rng.integers(20, 37)))
    frames = [_through_jpeg(frame, quality=int(rng.integers(40, 95))) for frame in frames]
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    squashed = [
        np.asarray(Image.fromarray(f).resize((side, side), filters[int(rng.integers(2))]))
        for f in frames
    ]
    places_NOP = _places(scenes, moments, size[0] / size[1])
    return Pool(scenes=scenes, pixels_NSSC=np.stack(squashed), places_NOP=places_NOP)


def render_pool(recipe: Recipe, *, workers: int) -> Pool:
    """Render all pictures; the result does not depend on the number of workers."""
    chunks = math.ceil(recipe.pictures / _CHUNK)
    parts: list[Pool] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        seeds, sides = [recipe.seed] * chunks, [recipe.image_size] * chunks
        for part in pool.map(_render_chunk, seeds, range(chunks), sides, chunksize=4):
            parts.append(part)
            if len(parts) % 50 == 0:
                print(
                    f"rendered {len(parts) * _CHUNK} of {chunks * _CHUNK}",
                    file=sys.stderr,
                    flush=True,
                )
    return Pool(
        scenes=[scene for part in parts for scene in part.scenes],
        pixels_NSSC=np.concatenate([part.pixels_NSSC for part in parts]),
        places_NOP=np.concatenate([part.places_NOP for part in parts]),
    )


def with_mirror_images(pool: Pool) -> tuple[list[Scene], FloatArray]:
    """Return scenes and places of all pictures, then those of their mirror images."""
    places_NOP = pool.places_NOP.copy()
    present = places_NOP[..., 2] > 0
    places_NOP[..., 0][present] = 1 - places_NOP[..., 0][present]
    scenes = [*pool.scenes, *(scene.mirrored() for scene in pool.scenes)]
    return scenes, np.concatenate([pool.places_NOP, places_NOP])

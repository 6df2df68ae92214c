"""From JPEG bytes to the vision tower's input, in torch, held to transformers' image processors.

Shapes: N pictures, H and W pixels, C = 3 channels, P patches of a NaFlex picture, K values of one
patch (patch height x patch width x C, channels fastest).

Two steps, so that each runs where it is cheap. :func:`prepare` is for a thread per picture: it
decodes, and shrinks on the host. :func:`assemble` and :func:`model_inputs` are for a batch: the
first stacks bytes, the second resizes what is left to resize, scales and normalises on the device.
Pictures travel as uint8, a quarter of the bytes of float32.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from siglip_pipeline.siglip.recipe import Recipe

ImageLike = Image.Image | bytes | NDArray[np.uint8]

DRAFT_MARGIN = 3
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size while that leaves this many times the target.
At 3 the antialiasing filter still does most of the work, and vectors keep a cosine of 0.9999 to
those of a full decode."""

DEVICE_RESIZE_PIXELS = 2_000_000
"""Larger pictures are shrunk on the host even where the device resizes: they cost more to carry."""

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Prepared:
    """One decoded picture on its way into a batch."""

    pixels_HWC: torch.Tensor
    """uint8, at the target size or on its way there; C is 3, or 4 where the last one is filler."""
    height: int
    """Target height in pixels."""
    width: int


@dataclass(frozen=True, slots=True)
class Group:
    """Pictures of a batch that have the same shape and the same target."""

    positions: torch.Tensor
    """int64 [n] on the host: places in the batch."""
    pixels_NHWC: torch.Tensor
    """uint8 [n, H, W, 3 or 4]"""
    height: int
    """Target height in pixels."""
    width: int
    rows: torch.Tensor | None = None
    """``positions`` on the device that ``pixels_NHWC`` is on."""


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """A batch of pictures, ready to be carried to the device."""

    count: int
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return self.count

    def split(self) -> tuple["ImageBatch", "ImageBatch"]:
        """The first and the second half, in order."""
        middle = self.count // 2
        halves = []
        for begin, end in ((0, middle), (middle, self.count)):
            groups = []
            for group in self.groups:
                inside = (group.positions >= begin) & (group.positions < end)
                if bool(inside.any()):
                    positions = group.positions[inside] - begin
                    pixels = group.pixels_NHWC[inside]
                    groups.append(Group(positions, pixels, group.height, group.width))
            halves.append(ImageBatch(end - begin, tuple(groups)))
        return halves[0], halves[1]

    def to(self, device: torch.device) -> "ImageBatch":
        """The batch on ``device``; asynchronous where the batch is pinned."""
        moved = tuple(
            replace(
                group,
                pixels_NHWC=group.pixels_NHWC.to(device, non_blocking=True),
                rows=group.positions.to(device, non_blocking=True),
            )
            for group in self.groups
        )
        return ImageBatch(self.count, moved)

    def pinned(self) -> "ImageBatch":
        """The batch in page-locked memory, from which a GPU copies without the CPU's help."""
        pinned = tuple(
            replace(
                group,
                positions=group.positions.pin_memory(),
                pixels_NHWC=group.pixels_NHWC.pin_memory(),
            )
            for group in self.groups
        )
        return ImageBatch(self.count, pinned)


def target_size(height: int, width: int, recipe: Recipe) -> tuple[int, int]:
    """Height and width in pixels that a picture of ``height`` x ``width`` is resized to."""
    if recipe.size is not None:
        return recipe.size, recipe.size
    assert recipe.max_num_patches is not None
    return naflex_size(height, width, recipe.patch_size, recipe.max_num_patches)


def naflex_size(height: int, width: int, patch: int, max_num_patches: int) -> tuple[int, int]:
    """The largest size of about the same aspect ratio that is at most ``max_num_patches`` patches.

    Both sides are multiples of ``patch``. The search is the one that NaFlex checkpoints were
    trained with (transformers' ``get_image_size_for_max_num_patches``), step for step: at the
    edges a closed formula would differ by a patch.
    """

    def scaled(scale: float, side: int) -> int:
        return int(max(patch, math.ceil(side * scale / patch) * patch))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        patches = (scaled(middle, height) / patch) * (scaled(middle, width) / patch)
        low, high = (middle, high) if patches <= max_num_patches else (low, middle)
    return scaled(low, height), scaled(low, width)


def decode(image: ImageLike, recipe: Recipe) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Pixels [H, W, 3 or 4] of a picture, and its size (height, width) before any draft shrinking.

    A fourth channel is filler, not opacity. Transparency is laid on white and EXIF orientation
    applied, as a person would see the picture.

    Raises:
        ValueError: not a picture that can be read, or an array that is not uint8 [H, W, 3].
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
        return image, (image.shape[0], image.shape[1])
    try:
        if isinstance(image, bytes):
            with Image.open(io.BytesIO(image)) as opened:
                return _read(opened, recipe)
        return _pixels(_rgb(image)), (image.height, image.width)
    # Pillow's readers raise SyntaxError, struct.error and more on damaged files.
    except Exception as error:
        raise ValueError(f"not a picture that can be read ({error})") from error


def _read(opened: Image.Image, recipe: Recipe) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    turned = opened.getexif().get(_EXIF_ORIENTATION, 1) if opened.info.get("exif") else 1
    width, height = opened.size
    size = (width, height) if turned in (5, 6, 7, 8) else (height, width)
    if opened.format == "JPEG":
        target_height, target_width = target_size(*size, recipe)
        if turned in (5, 6, 7, 8):
            target_height, target_width = target_width, target_height
        opened.draft("RGB", (target_width * DRAFT_MARGIN, target_height * DRAFT_MARGIN))
    upright = ImageOps.exif_transpose(opened) if turned != 1 else opened
    return _pixels(_rgb(upright)), size


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


class _Lent:
    """Memory of Pillow's that numpy may look at, kept alive by the array that looks."""

    def __init__(self, owner: Any, address: int, shape: tuple[int, int, int]) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": shape,
            "data": (address, False),
        }


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The picture's memory as [H, W, 4] without a copy; [H, W, 3] with one if it is scattered.

    Pillow keeps RGB in four bytes a pixel. Copying them out as three takes as long as a third of
    decoding the JPEG, and torch resizes four channels as fast as three.
    """
    image.load()
    try:
        lent = pyarrow.array(image)
    except ValueError:  # pictures of more than 4 million pixels lie in several blocks
        return np.array(image)
    buffer = lent.buffers()[-1]
    shape = (image.height, image.width, 4)
    return np.asarray(_Lent((image, lent), buffer.address, shape))


def prepare(image: ImageLike, recipe: Recipe, *, device_resizes: bool = False) -> Prepared:
    """Decode one picture and, unless the device will do it, resize it.

    Raises:
        ValueError: as :func:`decode`.
    """
    pixels, (height, width) = decode(image, recipe)
    target_height, target_width = target_size(height, width, recipe)
    tensor_HWC = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    if not device_resizes or pixels.shape[0] * pixels.shape[1] > DEVICE_RESIZE_PIXELS:
        tensor_HWC = _resize(tensor_HWC[None], target_height, target_width, recipe)[0, :, :, :3]
    return Prepared(tensor_HWC, target_height, target_width)


def _resize(pixels_NHWC: torch.Tensor, height: int, width: int, recipe: Recipe) -> torch.Tensor:
    """Antialiased resize, rounded to whole values as Pillow does; uint8 in, uint8 out."""
    if pixels_NHWC.shape[1:3] == (height, width):
        return pixels_NHWC
    pixels_NCHW = pixels_NHWC.permute(0, 3, 1, 2)  # a view that torch knows as channels-last
    # Only the CPU resizes uint8; its kernel is a port of Pillow-SIMD.
    on_cpu = pixels_NCHW.device.type == "cpu"
    resized = torch.nn.functional.interpolate(
        pixels_NCHW if on_cpu else pixels_NCHW.float(),
        size=(height, width),
        mode=recipe.resample,
        align_corners=False,
        antialias=True,
    )
    if not on_cpu:
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return resized.permute(0, 2, 3, 1).contiguous()


def assemble(pictures: Sequence[Prepared]) -> ImageBatch:
    """Stack pictures into a batch, those of equal shape together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        key = (tuple(picture.pixels_HWC.shape), picture.height, picture.width)
        groups.setdefault(key, []).append(i)
    return ImageBatch(
        len(pictures),
        tuple(
            Group(
                torch.tensor(places),
                torch.stack([pictures[i].pixels_HWC for i in places]),
                height,
                width,
            )
            for (_, height, width), places in groups.items()
        ),
    )


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """What the vision tower is called with."""

    arguments: dict[str, torch.Tensor]
    patches: int
    """Patches that carry a picture, over the whole batch."""
    padding: int
    """Patches that carry nothing: the price of batching pictures of different shapes."""


def model_inputs(batch: ImageBatch, recipe: Recipe, dtype: torch.dtype) -> ModelInputs:
    """Resize what is left to resize, normalise and lay out a batch on the device it is on.

    Fixed resolution: ``pixel_values`` [N, C, H, W]. NaFlex: ``pixel_values`` [N, P, K], where P is
    the longest picture of this batch rather than ``max_num_patches``, ``spatial_shapes`` [N, 2]
    and, where lengths differ, ``pixel_attention_mask`` [N, P].
    """
    parts = []
    for group in batch.groups:
        resized = _resize(group.pixels_NHWC, group.height, group.width, recipe)[..., :3]
        scale, shift = _scale_and_shift(recipe, resized.device)
        parts.append(resized.to(torch.float32).mul_(scale).add_(shift).to(dtype))
    if recipe.size is not None:
        pixels_NHWC = _gather(batch, parts)
        count = len(batch) * (recipe.size // recipe.patch_size) ** 2
        return ModelInputs({"pixel_values": pixels_NHWC.permute(0, 3, 1, 2)}, count, 0)
    return _naflex_inputs(batch, recipe, parts)


@lru_cache(maxsize=16)
def _scale_and_shift(recipe: Recipe, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Kept: making a tensor on a GPU from numbers waits for all that the GPU has to do before.
    scale = [recipe.scale / std for std in recipe.std]
    shift = [-mean / std for mean, std in zip(recipe.mean, recipe.std, strict=True)]
    return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


def _gather(batch: ImageBatch, parts: list[torch.Tensor]) -> torch.Tensor:
    """The groups' parts in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    result = parts[0].new_empty((len(batch), *parts[0].shape[1:]))
    for group, part in zip(batch.groups, parts, strict=True):
        result[group.positions if group.rows is None else group.rows] = part
    return result


def _naflex_inputs(
    batch: ImageBatch, recipe: Recipe, parts_NHWC: list[torch.Tensor]
) -> ModelInputs:
    patch = recipe.patch_size
    device = parts_NHWC[0].device
    shapes = torch.empty((len(batch), 2), dtype=torch.int64)
    for group in batch.groups:
        shapes[group.positions] = torch.tensor([group.height // patch, group.width // patch])
    lengths = shapes.prod(dim=1)
    longest = int(lengths.max())
    padded = []
    for pixels in parts_NHWC:
        n, height, width, channels = pixels.shape
        rows, columns = height // patch, width // patch
        patches = pixels.reshape(n, rows, patch, columns, patch, channels).permute(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(n, rows * columns, patch * patch * channels)
        padded.append(torch.nn.functional.pad(patches, (0, 0, 0, longest - rows * columns)))
    real = int(lengths.sum())
    # The shapes stay on the host: the model reads them number by number.
    arguments = {"pixel_values": _gather(batch, padded), "spatial_shapes": shapes}
    if real < len(batch) * longest:
        mask = (torch.arange(longest)[None, :] < lengths[:, None]).to(torch.int32)
        if device.type == "cuda":
            mask = mask.pin_memory()
        arguments["pixel_attention_mask"] = mask.to(device, non_blocking=True)
    return ModelInputs(arguments, real, len(batch) * longest - real)

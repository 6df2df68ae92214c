"""Turn JPEG bytes into the vision tower's input, in torch, as transformers' processors do.

Shapes: N pictures, H and W pixels, C = 3 channels, P patches of a NaFlex picture, K values of one
patch (patch height x patch width x C, channels fastest).

Each step runs where it is cheap. :func:`prepare` decodes and shrinks one picture on the host, in a
thread. :func:`assemble` stacks a batch; :func:`model_inputs` resizes what is not resized yet,
scales and normalises it on the device. Pictures are transferred as uint8, a quarter of the bytes of
float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from siglip_pipeline.siglip.jpeg_decoding import ImageLike, decode
from siglip_pipeline.siglip.recipe import Recipe, target_size

DEVICE_RESIZE_PIXELS = 2_000_000
"""Larger pictures are shrunk on the host even if the device resizes, to transfer fewer bytes."""

DEVICE_RESIZE_FACTOR = 8
"""So are pictures that shrink by a larger factor: torch's CUDA kernel keeps the filter weights in
shared memory, and raises if they do not fit."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One decoded picture for a batch."""

    pixels_HWC: torch.Tensor
    """uint8, at the target size or not resized yet."""
    height: int
    """Target height in pixels."""
    width: int


@dataclass(frozen=True, slots=True)
class Group:
    """Pictures of a batch with the same shape and the same target size."""

    positions: torch.Tensor
    """int64 [n] on the host: positions in the batch."""
    pixels_NHWC: torch.Tensor
    """uint8 [n, H, W, 3]"""
    height: int
    """Target height in pixels."""
    width: int
    rows: torch.Tensor | None = None
    """``positions`` on the device that ``pixels_NHWC`` is on."""


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """A batch of pictures, on the host or decoded on the device."""

    count: int
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return self.count

    def split(self) -> tuple["ImageBatch", "ImageBatch"]:
        """Return the first and the second half, in order."""
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
        """Return the batch on ``device``; the copy is asynchronous if the batch is pinned."""
        moved = tuple(
            replace(
                group,
                pixels_NHWC=group.pixels_NHWC.to(device, non_blocking=True),
                rows=group.positions.to(device, non_blocking=True),
            )
            for group in self.groups
        )
        return ImageBatch(self.count, moved)


def prepare(image: ImageLike, recipe: Recipe, *, device_resizes: bool = False) -> Prepared:
    """Decode one picture, and resize it unless the device will.

    Raises:
        ValueError: as :func:`decode`.
    """
    pixels, full_size = decode(image, recipe)
    pixels_HWC = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    return fitted(pixels_HWC, full_size, recipe, device_resizes=device_resizes)


def fitted(
    pixels_HWC: torch.Tensor, full_size: tuple[int, int], recipe: Recipe, *, device_resizes: bool
) -> Prepared:
    """Return a decoded picture, resized unless the device will.

    Args:
        pixels_HWC: uint8, whole or decoded at a fraction of its size.
        full_size: the picture's height and width.
    """
    height, width = target_size(*full_size, recipe)
    own_height, own_width, _ = pixels_HWC.shape
    if not (device_resizes and suits_a_gpu(own_height, own_width, height, width)):
        pixels_HWC = _resize(pixels_HWC[None], height, width, recipe)[0]
    return Prepared(pixels_HWC, height, width)


def suits_a_gpu(height: int, width: int, target_height: int, target_width: int) -> bool:
    """Return whether a GPU should resize a picture of this size."""
    steepest = max(height / target_height, width / target_width)
    return height * width <= DEVICE_RESIZE_PIXELS and steepest <= DEVICE_RESIZE_FACTOR


def _resize(pixels_NHWC: torch.Tensor, height: int, width: int, recipe: Recipe) -> torch.Tensor:
    """Resize uint8 pixels with antialiasing, rounded to whole values as Pillow does."""
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


def assemble(pictures: Sequence[Prepared], *, pinned: bool = False) -> ImageBatch:
    """Stack pictures into a batch, grouped by shape.

    Args:
        pictures: at least one.
        pinned: stack in page-locked memory, from which a GPU copies asynchronously; ignored
            where there is no GPU.
    """
    pinned = pinned and torch.cuda.is_available()
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        pixels_HWC = picture.pixels_HWC
        key = (tuple(pixels_HWC.shape), picture.height, picture.width, pixels_HWC.device)
        groups.setdefault(key, []).append(i)
    return ImageBatch(
        len(pictures),
        tuple(
            Group(
                torch.tensor(places, pin_memory=pinned),
                _stack([pictures[i].pixels_HWC for i in places], pinned=pinned),
                height,
                width,
            )
            for (_, height, width, _), places in groups.items()
        ),
    )


def _stack(pictures_HWC: list[torch.Tensor], *, pinned: bool) -> torch.Tensor:
    if not pinned or pictures_HWC[0].device.type != "cpu":
        return torch.stack(pictures_HWC)
    shape = (len(pictures_HWC), *pictures_HWC[0].shape)
    stacked = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.stack(pictures_HWC, out=stacked)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """The arguments of the vision tower."""

    arguments: dict[str, torch.Tensor]
    patches: int
    """Patches of pictures in the whole batch."""
    padding: int
    """Padding patches, due to pictures of different shapes in one batch."""


def model_inputs(batch: ImageBatch, recipe: Recipe, dtype: torch.dtype) -> ModelInputs:
    """Resize what is not resized yet, normalise and lay out a batch on its device.

    Fixed resolution: ``pixel_values`` [N, C, H, W]. NaFlex: ``pixel_values`` [N, P, K], where P is
    the longest picture of this batch rather than ``max_num_patches``, ``spatial_shapes`` [N, 2]
    and, if lengths differ, ``pixel_attention_mask`` [N, P].
    """
    parts = []
    for group in batch.groups:
        resized = _resize(group.pixels_NHWC, group.height, group.width, recipe)
        scale, shift = _scale_and_shift(recipe, resized.device)
        parts.append(resized.to(torch.float32).mul_(scale).add_(shift).to(dtype))
    if recipe.size is not None:
        pixels_NHWC = _gather(batch, parts)
        patches = len(batch) * recipe.most_patches
        return ModelInputs({"pixel_values": pixels_NHWC.permute(0, 3, 1, 2)}, patches, 0)
    return _naflex_inputs(batch, recipe, parts)


@lru_cache(maxsize=16)
def _scale_and_shift(recipe: Recipe, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Cached: making a tensor from numbers waits for all queued work of a GPU.
    scale = [recipe.scale / std for std in recipe.std]
    shift = [-mean / std for mean, std in zip(recipe.mean, recipe.std, strict=True)]
    return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


def _gather(batch: ImageBatch, parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the tensors of the groups in the order of the batch."""
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

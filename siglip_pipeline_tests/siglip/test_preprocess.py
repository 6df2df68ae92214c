"""Batches of pictures of several shapes: their order, their halves, and where they are resized."""

import numpy as np
import pytest
import torch

from siglip_pipeline.siglip.preprocess import (
    ImageBatch,
    Prepared,
    assemble,
    fitted,
    model_inputs,
    suits_a_gpu,
)
from siglip_pipeline.siglip.recipe import Recipe, target_size

PATCH = 4
SIZES = ((24, 40), (60, 20), (24, 40), (32, 32), (60, 20))
"""Pictures of three shapes, mixed."""


def recipe(*, naflex: bool) -> Recipe:
    return Recipe(
        family="siglip2" if naflex else "siglip",
        resample="bilinear",
        scale=1 / 255,
        mean=(0.5, 0.4, 0.3),
        std=(0.5, 0.25, 0.2),
        patch_size=PATCH,
        size=None if naflex else 16,
        max_num_patches=12 if naflex else None,
        text_length=8,
    )


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    rng = np.random.default_rng(1)
    return [torch.from_numpy(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


def shrunk(pixels: torch.Tensor, chosen: Recipe, *, device_resizes: bool = False) -> Prepared:
    height, width, _ = pixels.shape
    return fitted(pixels, (height, width), chosen, device_resizes=device_resizes)


def batch(naflex: bool, *, device_resizes: bool = False) -> ImageBatch:
    chosen = recipe(naflex=naflex)
    return assemble(
        [shrunk(each, chosen, device_resizes=device_resizes) for each in pictures(*SIZES)]
    )


@pytest.mark.parametrize("naflex", [False, True])
def test_each_picture_of_a_batch_has_the_values_that_it_has_alone(naflex: bool) -> None:
    chosen = recipe(naflex=naflex)
    whole = batch(naflex)
    assert len(whole) == 5
    inputs = model_inputs(whole, chosen, torch.float32)
    alone = [
        model_inputs(assemble([shrunk(pixels, chosen)]), chosen, torch.float32)
        for pixels in pictures(*SIZES)
    ]
    assert inputs.patches == sum(one.patches for one in alone)
    longest = max(one.patches for one in alone)
    assert inputs.padding == (5 * longest - inputs.patches if naflex else 0)
    for place, one in enumerate(alone):
        values, own = inputs.arguments["pixel_values"][place], one.arguments["pixel_values"][0]
        assert one.padding == 0
        if not naflex:
            assert torch.equal(values, own)
            continue
        assert torch.equal(values[: one.patches], own)
        assert not values[one.patches :].any()
        assert "pixel_attention_mask" not in one.arguments
        mask = inputs.arguments["pixel_attention_mask"][place]
        assert mask.tolist() == [1] * one.patches + [0] * (longest - one.patches)
        shape = inputs.arguments["spatial_shapes"][place]
        assert shape.tolist() == one.arguments["spatial_shapes"][0].tolist()
        assert int(shape.prod()) == one.patches


def test_values_are_normalised_by_channel() -> None:
    chosen = recipe(naflex=False)
    pixels = torch.tensor([0, 100, 255], dtype=torch.uint8).repeat(16, 16, 1)
    inputs = model_inputs(assemble([Prepared(pixels, 16, 16)]), chosen, torch.float32)
    expected = [(0 - 0.5) / 0.5, (100 / 255 - 0.4) / 0.25, (1 - 0.3) / 0.2]
    values = inputs.arguments["pixel_values"]
    assert values.shape == (1, 3, 16, 16)
    assert inputs.patches == 16
    for channel, value in enumerate(expected):
        np.testing.assert_allclose(values[0, channel].numpy(), value, atol=1e-6)


def test_patches_are_read_row_by_row_with_channels_fastest() -> None:
    chosen = recipe(naflex=True)
    [pixels] = pictures((2 * PATCH, 3 * PATCH))
    inputs = model_inputs(assemble([Prepared(pixels, 2 * PATCH, 3 * PATCH)]), chosen, torch.float32)
    values = inputs.arguments["pixel_values"][0]
    scaled = (pixels.numpy() / 255 - chosen.mean) / chosen.std
    for row in range(2):
        for column in range(3):
            patch = scaled[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            np.testing.assert_allclose(
                values[row * 3 + column].numpy(), patch.reshape(-1), atol=1e-6
            )


@pytest.mark.parametrize("naflex", [False, True])
def test_halves_hold_the_pictures_in_order(naflex: bool) -> None:
    chosen = recipe(naflex=naflex)
    whole = batch(naflex)
    halves = whole.split()
    assert [len(half) for half in halves] == [2, 3]
    values = model_inputs(whole, chosen, torch.float32).arguments["pixel_values"]
    place = 0
    for half in halves:
        for own in model_inputs(half, chosen, torch.float32).arguments["pixel_values"]:
            assert torch.equal(values[place][: len(own)], own)
            place += 1
        assert all(len(group.positions) for group in half.groups), "no empty group"


def test_a_batch_on_a_device_is_the_same_batch() -> None:
    whole = batch(naflex=True)
    moved = whole.to(torch.device("cpu"))
    assert all(group.rows is not None for group in moved.groups)
    for chosen in (whole, moved):
        inputs = model_inputs(chosen, recipe(naflex=True), torch.float32)
        assert inputs.arguments["spatial_shapes"].tolist() == [
            [side // PATCH for side in target_size(*size, recipe(naflex=True))] for size in SIZES
        ]


def test_page_locked_memory_is_asked_for_where_there_is_a_gpu_alone() -> None:
    prepared = [shrunk(each, recipe(naflex=True)) for each in pictures(*SIZES)]
    for group, same in zip(assemble(prepared, pinned=True).groups, batch(True).groups, strict=True):
        assert torch.equal(group.pixels_NHWC, same.pixels_NHWC)
        assert group.pixels_NHWC.is_pinned() == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("size", "target", "suits"),
    [
        ((1000, 2000), (500, 500), True),
        ((1000, 2001), (500, 500), False),
        ((800, 800), (100, 100), True),
        ((801, 800), (100, 100), False),
        ((800, 801), (100, 100), False),
        ((800, 80), (100, 40), True),
    ],
)
def test_a_gpu_resizes_what_is_small_and_shrinks_little(
    size: tuple[int, int], target: tuple[int, int], suits: bool
) -> None:
    assert suits_a_gpu(*size, *target) == suits


@pytest.mark.parametrize("size", [(24, 40), (200, 16), (16, 16)])
def test_what_the_device_will_resize_is_left_as_it_is(size: tuple[int, int]) -> None:
    [pixels] = pictures(size)
    chosen = recipe(naflex=False)
    for device_resizes in (False, True):
        done = shrunk(pixels, chosen, device_resizes=device_resizes)
        left = device_resizes and size != (200, 16)  # shrinks more than eightfold
        assert tuple(done.pixels_HWC.shape) == ((*size, 3) if left else (16, 16, 3))
        assert (done.height, done.width) == (16, 16)
    here, there = (batch(False, device_resizes=resizes) for resizes in (False, True))
    assert {tuple(group.pixels_NHWC.shape[1:3]) for group in there.groups} != {(16, 16)}
    values = [
        model_inputs(each, chosen, torch.float32).arguments["pixel_values"]
        for each in (here, there)
    ]
    assert torch.equal(*values)

"""The renderer: equal scenes give equal pixels, and what a caption says can be seen."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from siglip_pipeline.demo.drawing import Pixels, render_frame, render_picture
from siglip_pipeline.demo.films import DemoVideo, demo_scenes, render_demo_videos, render_video
from siglip_pipeline.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SEEN_PAIRS,
    SHAPES,
    SIZES,
    TEXTURES,
    Motion,
    Object,
    Scene,
    random_scene,
)
from tools.demo_model.captions import encode, full_claim, truth_matrix

_BARE = Object(colour="red", shape="circle")


def _of_colour(pixels: Pixels, colour: str) -> NDArray[np.bool_]:
    distance = np.abs(pixels.astype(int) - np.array(COLOURS[colour])).max(axis=2)
    return np.asarray(distance < 30)


def _centre(scene: Scene, *, moment: float = 0.5) -> tuple[float, float]:
    """Middle of the red pixels, in shares of width and height."""
    mask = _of_colour(render_frame(scene, moment=moment), "red")
    y, x = np.nonzero(mask)
    return float(x.mean() / mask.shape[1]), float(y.mean() / mask.shape[0])


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_equal_arguments_give_equal_pixels(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed))
    again = random_scene(np.random.default_rng(seed))
    assert scene == again
    first = render_frame(scene, moment=0.3, size=(96, 72), frame=4)
    assert first.shape == (72, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, render_frame(again, moment=0.3, size=(96, 72), frame=4))


def test_rendering_does_not_write_into_the_cached_background() -> None:
    scene = Scene(objects=(_BARE,), texture="striped", light="dim", grain=5.0)
    first = render_frame(scene)
    assert (render_frame(scene) == first).all()


def test_grain_alone_changes_from_frame_to_frame() -> None:
    scene = Scene(objects=(_BARE,), texture="dotted", seed=3)
    assert (render_frame(scene, frame=1) == render_frame(scene, frame=2)).all()
    grainy = replace(scene, grain=6.0)
    difference = render_frame(grainy, frame=1).astype(int) - render_frame(grainy, frame=2)
    assert 3 < difference.std() < 15


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_has_its_colour_on_every_background(colour: str) -> None:
    for background in BACKGROUNDS:
        if background == colour:
            continue
        item = replace(_BARE, colour=colour)
        pixels = render_frame(Scene(objects=(item,), background=background))
        assert _of_colour(pixels, colour)[120, 160]
        assert not _of_colour(pixels, colour)[5:30, 5:30].any()


def test_every_shape_is_drawn_and_no_two_are_alike() -> None:
    masks = [
        _of_colour(render_frame(Scene(objects=(replace(_BARE, shape=shape),))), "red")
        for shape in SHAPES
    ]
    for number, mask in enumerate(masks):
        assert mask.sum() > 1000
        for other in masks[:number]:
            overlap = (mask & other).sum() / (mask | other).sum()
            assert overlap < 0.9


def test_an_unknown_shape_is_named_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"'blob' is not one of circle, square"):
        render_frame(Scene(objects=(replace(_BARE, shape="blob"),)))


@pytest.mark.parametrize("size", SIZES)
def test_the_size_word_is_the_drawn_size(size: str) -> None:
    rng = np.random.default_rng(1)
    areas: list[float] = []
    while len(areas) < 5:
        scene = random_scene(rng, pairs=[("red", "square")], objects=1)
        item = scene.objects[0]
        if item.size == size:
            item = replace(item, row="middle", column="center", motion="still")
            plain = Scene(objects=(item,), background="gray")
            areas.append(_of_colour(render_frame(plain), "red").sum() / (240 * 240))
    low, high = {"small": (0.03, 0.055), "medium": (0.075, 0.12), "large": (0.18, 0.28)}[size]
    assert all(low < area < high for area in areas), areas


@pytest.mark.parametrize(
    ("row", "column", "x", "y"),
    [("top", "left", 0.2, 0.24), ("middle", "center", 0.5, 0.5), ("bottom", "right", 0.8, 0.76)],
)
def test_an_object_is_where_its_caption_says(row: str, column: str, x: float, y: float) -> None:
    centre = _centre(Scene(objects=(replace(_BARE, row=row, column=column),)))
    assert centre == pytest.approx((x, y), abs=0.02)


@pytest.mark.parametrize(
    ("motion", "step"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_a_moving_object_goes_the_way_it_is_said_to(motion: Motion, step: tuple[int, int]) -> None:
    scene = Scene(objects=(replace(_BARE, motion=motion),))
    x0, y0 = _centre(scene, moment=0.0)
    x1, y1 = _centre(scene, moment=1.0)
    # 0.16 of the height, and a picture of 4:3.
    assert (x1 - x0) * 4 / 3 == pytest.approx(0.16 * step[0], abs=0.02)
    assert y1 - y0 == pytest.approx(0.16 * step[1], abs=0.02)


@pytest.mark.parametrize("motion", ["left", "right", "up", "down"])
def test_one_frame_shows_the_motion_by_a_trail_behind_the_object(motion: Motion) -> None:
    still = render_frame(Scene(objects=(_BARE,))).astype(int)
    moving = render_frame(Scene(objects=(replace(_BARE, motion=motion),))).astype(int)
    trail_y, trail_x = np.nonzero(np.abs(moving - still).sum(axis=2) > 15)
    assert len(trail_x) > 500
    mean_x, mean_y = trail_x.mean() - 160, trail_y.mean() - 120
    behind = {"left": mean_x, "right": -mean_x, "up": mean_y, "down": -mean_y}[motion]
    assert behind > 40
    assert _of_colour(moving.astype(np.uint8), "red")[120, 160]


def test_textures_keep_the_background_s_colour_and_differ() -> None:
    pictures = {
        texture: render_frame(Scene(objects=(_BARE,), background="blue", texture=texture))
        for texture in TEXTURES
    }
    for texture, pixels in pictures.items():
        corner = pixels[:60, :60].reshape(-1, 3).mean(axis=0)
        assert corner[2] > corner[0] + 30
        assert corner[2] > corner[1] + 20
        assert (pixels[:60, :60].std() > 40) or texture != "noisy"
    flat = pictures["plain"][:60, :60].astype(int)
    for texture in ("striped", "checkered", "dotted", "noisy"):
        assert np.abs(pictures[texture][:60, :60] - flat).max() > 20, texture


def test_dim_light_halves_the_picture() -> None:
    scene = Scene(objects=(_BARE,), background="white")
    bright, dim = render_frame(scene).mean(), render_frame(replace(scene, light="dim")).mean()
    assert dim == pytest.approx(bright / 2, rel=0.02)


def test_a_mirrored_scene_is_the_mirrored_picture() -> None:
    items = (
        replace(_BARE, row="top", column="left", motion="right", offset=(0.02, 0.01)),
        replace(_BARE, colour="blue", shape="heart", column="right", tilt_degrees=9.0),
    )
    scene = Scene(objects=items, background="white")
    mirrored = scene.mirrored()
    assert [item.column for item in mirrored.objects] == ["right", "left"]
    assert mirrored.objects[0].motion == "left"
    difference = np.abs(render_frame(mirrored).astype(int) - render_frame(scene)[:, ::-1])
    # The slope of the light and half pixels are not mirrored.
    assert (difference.max(axis=2) > 25).mean() < 0.01


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_random_scenes_keep_to_their_pairs_and_can_be_seen(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed), pairs=SEEN_PAIRS)
    assert not scene.has_held_out_pair
    assert 1 <= len(scene.objects) <= 3
    assert all(item.colour != scene.background for item in scene.objects)
    assert len({item.pair for item in scene.objects}) == len(scene.objects)
    if len(scene.objects) > 1:
        assert len({item.column for item in scene.objects}) == len(scene.objects)


def test_held_out_pairs_leave_each_colour_and_shape_in_training() -> None:
    assert len(HELD_OUT) == 15
    assert {colour for colour, _ in SEEN_PAIRS} == set(COLOURS)
    assert {shape for _, shape in SEEN_PAIRS} == set(SHAPES)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_each_demo_caption_is_true_of_one_scene_only(seed: int) -> None:
    scenes = demo_scenes(seed=seed)
    truth = truth_matrix(encode(scenes), encode([full_claim(scene) for scene in scenes]))
    np.testing.assert_array_equal(truth, np.eye(len(scenes), dtype=bool))
    assert len({scene.caption for scene in scenes}) == len(scenes) == 40


# -------------------------------------------------------------------------------------- films


@pytest.mark.parametrize(
    ("name", "codec", "decoder"),
    [("a.mp4", "libx264", "h264"), ("b.mkv", "mpeg4", "mpeg4"), ("c.webm", "libvpx-vp9", "vp9")],
)
def test_a_film_shows_each_scene_for_its_time(
    tmp_path: Path, name: str, codec: str, decoder: str
) -> None:
    red = Scene(objects=(replace(_BARE, size="large", radius=0.3),))
    blue = Scene(objects=(replace(_BARE, colour="blue", size="large", radius=0.3),))
    film = render_video(
        tmp_path / "new" / name,
        [red, blue],
        seconds_per_scene=[1.0, 2.0],
        fps=5,
        size=(128, 96),
        codec=codec,
    )
    assert film.timeline == ((0.0, 1.0, red), (1.0, 3.0, blue))
    assert [path.name for path in film.path.parent.iterdir()] == [name]
    with av.open(str(film.path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name.removeprefix("lib").startswith(decoder[:3])
        frames = list(container.decode(stream))
    assert len(frames) == 15
    for frame in frames:
        pixel = np.asarray(frame.to_ndarray(format="rgb24"))[48, 64].astype(int)
        expected = "red" if float(frame.time or 0) < 0.999 else "blue"
        assert np.abs(pixel - np.array(COLOURS[expected])).max() < 70, (frame.time, pixel)


def test_equal_films_are_equal_files(tmp_path: Path) -> None:
    scenes = [random_scene(np.random.default_rng(5))]
    films = [
        render_video(tmp_path / f"{n}.mp4", scenes, seconds_per_scene=0.5, fps=10, size=(96, 72))
        for n in range(2)
    ]
    assert films[0].path.read_bytes() == films[1].path.read_bytes()


def test_an_existing_film_is_kept_only_if_it_is_the_same_film(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    one, other = (Scene(objects=(replace(_BARE, colour=c),)) for c in ("red", "blue"))

    def render(scene: Scene) -> tuple[int, int]:
        render_video(path, [scene], seconds_per_scene=0.4, fps=10, size=(96, 72), overwrite=False)
        return path.stat().st_ino, path.stat().st_mtime_ns

    first = render(one)
    assert render(one) == first
    second = render(other)
    assert second != first
    path.write_bytes(b"not a film")
    render(other)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4


def test_a_film_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = Scene(objects=(replace(_BARE, shape="blob"),))
    with pytest.raises(ValueError, match="blob"):
        render_video(tmp_path / "x.mp4", [broken], size=(96, 72))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scenes", "options", "message"),
    [
        (0, {}, "scenes is empty"),
        (2, {"seconds_per_scene": [1.0]}, "1 lengths for 2 scenes"),
        (1, {"size": (95, 72)}, "must be even"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, scenes: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render_video(tmp_path / "x.mp4", [Scene(objects=(_BARE,))] * scenes, **options)  # type: ignore[arg-type]


def test_demo_videos_differ_in_kind_and_are_made_once(demo_videos: list[DemoVideo]) -> None:
    codecs, rates = set(), set()
    for film in demo_videos:
        assert 20 <= film.timeline[-1][1] <= 40
        with av.open(str(film.path)) as container:
            codecs.add(container.streams.video[0].codec_context.name)
            rates.add(container.streams.video[0].average_rate)
    assert len(demo_videos) == 5
    assert len(codecs) == 3
    assert len(rates) >= 4
    assert {film.path.suffix for film in demo_videos} == {".mp4", ".mkv", ".webm"}
    before = [film.path.stat().st_mtime_ns for film in demo_videos]
    assert render_demo_videos(demo_videos[0].path.parent) == demo_videos
    assert [film.path.stat().st_mtime_ns for film in demo_videos] == before


def test_a_still_is_the_scene_s_middle_frame() -> None:
    scene = random_scene(np.random.default_rng(8))
    picture = render_picture(scene, size=(200, 150))
    assert picture.size == (200, 150)
    np.testing.assert_array_equal(np.asarray(picture), render_frame(scene, size=(200, 150)))


def test_scenes_need_neither_torch_nor_av() -> None:
    code = (
        "import sys, siglip_pipeline.demo.scenes, siglip_pipeline.demo.drawing;"
        "print([m for m in ('torch', 'transformers', 'av', 'dagster') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

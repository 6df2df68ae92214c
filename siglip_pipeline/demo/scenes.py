"""What the demo's videos show: coloured shapes that stand or move before a background.

A :class:`Scene` is a description, whose caption's truth is known. :mod:`.drawing` draws it at one
moment, :mod:`.films` renders a sequence of scenes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

Size = Literal["small", "medium", "large"]
Motion = Literal["still", "left", "right", "up", "down"]
Texture = Literal["plain", "striped", "checkered", "dotted", "noisy"]
Light = Literal["normal", "dim"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 28),
    "green": (28, 186, 50),
    "blue": (28, 64, 226),
    "yellow": (248, 226, 30),
    "orange": (250, 134, 14),
    "purple": (136, 32, 176),
    "pink": (255, 132, 196),
    "cyan": (36, 214, 226),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
"""Colours of objects, sRGB."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (26, 26, 28),
    "white": (224, 224, 220),
    "gray": (124, 124, 124),
    "blue": (42, 66, 128),
    "green": (48, 104, 58),
    "brown": (106, 70, 40),
    "purple": (84, 48, 104),
    "yellow": (190, 172, 84),
}
"""Colours of backgrounds, sRGB: duller than the objects before them."""

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "diamond",
    "cross",
    "ring",
    "heart",
    "crescent",
    "hourglass",
)
SIZES: tuple[Size, ...] = get_args(Size)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "hourglass"),
        ("red", "diamond"),
        ("green", "star"),
        ("green", "crescent"),
        ("blue", "heart"),
        ("blue", "triangle"),
        ("yellow", "square"),
        ("yellow", "ring"),
        ("orange", "cross"),
        ("purple", "circle"),
        ("pink", "star"),
        ("cyan", "hourglass"),
        ("white", "heart"),
        ("black", "triangle"),
        ("black", "crescent"),
    }
)
"""Pairs of colour and shape that no training picture shows: 15 of 100."""

# Radius as a share of the picture's height: the gaps keep the three words apart.
_RADIUS: dict[Size, tuple[float, float]] = {
    "small": (0.115, 0.135),
    "medium": (0.175, 0.205),
    "large": (0.27, 0.31),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One thing in a scene."""

    colour: str
    shape: str
    size: Size = "medium"
    row: str = "middle"
    column: str = "center"
    motion: Motion = "still"
    radius: float = 0.19
    """Share of the picture's height; within the range that ``size`` stands for."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Distance of the middle of the way from the named place, in shares of width and height."""
    tilt_degrees: float = 0.0

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and shape, the unit that is held out from training."""
        return self.colour, self.shape

    def describe(self) -> str:
        """Return the object in words: size (unless medium), colour, shape, motion, place."""
        size = "" if self.size == "medium" else f"{self.size} "
        motion = "" if self.motion == "still" else f" moving {self.motion}"
        return f"{size}{self.colour} {self.shape}{motion} {_place_in_words(self.row, self.column)}"


def _place_in_words(row: str, column: str) -> str:
    """Return the place as a caption names it, e.g. ``at the top left``."""
    if (row, column) == ("middle", "center"):
        return "in the center"
    if row == "middle":
        return f"on the {column}"
    if column == "center":
        return f"at the {row}"
    return f"at the {row} {column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One to three objects before a background: everything a frame is drawn from."""

    objects: tuple[Object, ...]
    background: str = "gray"
    texture: Texture = "plain"
    light: Light = "normal"
    blur: float = 0.0
    """Strength of the blur: about its standard deviation as a share of the picture's height."""
    grain: float = 0.0
    """Standard deviation of sensor noise, in grey levels of 255."""
    seed: int = 0
    """Decides what no caption names: grain, phase and scale of the texture, slope of the light."""

    @property
    def caption(self) -> str:
        """The scene in words, with every property that a caption can name."""
        described = (item.describe() for item in self.objects)
        objects = " and ".join(f"{'an' if d[0] in 'aeiou' else 'a'} {d}" for d in described)
        texture = "" if self.texture == "plain" else f"{self.texture} "
        light = "" if self.light == "normal" else " in dim light"
        return f"{objects} on a {texture}{self.background} background{light}"

    def mirrored(self) -> "Scene":
        """Return the mirrored scene: left and right exchanged in every place and motion."""
        columns = {"left": "right", "right": "left"}
        motions: dict[Motion, Motion] = {"left": "right", "right": "left"}
        items = (
            replace(
                item,
                column=columns.get(item.column, item.column),
                motion=motions.get(item.motion, item.motion),
                offset=(-item.offset[0], item.offset[1]),
                tilt_degrees=-item.tilt_degrees,
            )
            for item in self.objects
        )
        return replace(self, objects=tuple(items))

    @property
    def has_held_out_pair(self) -> bool:
        """Whether an object's pair of colour and shape is one that training never shows."""
        return any(item.pair in HELD_OUT for item in self.objects)


def _random_object(
    rng: np.random.Generator,
    *,
    pairs: Sequence[tuple[str, str]],
    sizes: Sequence[Size],
    column: str | None,
) -> Object:
    """Draw a random object: colour and shape from ``pairs``, the rest uniformly."""
    colour, shape = pairs[int(rng.integers(len(pairs)))]
    size = sizes[int(rng.integers(len(sizes)))]
    motion: Motion = "still" if rng.random() < 0.4 else MOTIONS[int(rng.integers(1, 5))]
    return Object(
        colour=colour,
        shape=shape,
        size=size,
        row=ROWS[int(rng.integers(3))],
        column=column or COLUMNS[int(rng.integers(3))],
        motion=motion,
        radius=float(rng.uniform(*_RADIUS[size])),
        offset=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
        tilt_degrees=float(rng.uniform(-12, 12)),
    )


ALL_PAIRS: tuple[tuple[str, str], ...] = tuple((c, s) for c in COLOURS for s in SHAPES)
SEEN_PAIRS: tuple[tuple[str, str], ...] = tuple(p for p in ALL_PAIRS if p not in HELD_OUT)


def random_scene(
    rng: np.random.Generator,
    *,
    pairs: Sequence[tuple[str, str]] = ALL_PAIRS,
    objects: int | None = None,
) -> Scene:
    """Draw a random scene of one to three objects that do not hide each other.

    Args:
        rng: where all choices come from.
        pairs: the colour-shape pairs to draw from.
        objects: 1, 2 or 3; None draws 1 with probability 0.5, 2 with 0.35 and 3 with 0.15.
    """
    count = objects or int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    background = str(rng.choice(list(BACKGROUNDS)))
    # An object in the colour of its background could not be seen.
    visible = [pair for pair in pairs if pair[0] != background]
    columns = [str(c) for c in rng.permutation(list(COLUMNS))]
    items: list[Object] = []
    for number in range(count):
        # Several objects get one column each, and at most the first is large.
        sizes: tuple[Size, ...] = SIZES if number == 0 and count < 3 else ("small", "medium")
        free = [p for p in visible if all(p[0] != o.colour and p[1] != o.shape for o in items)]
        items.append(
            _random_object(
                rng,
                pairs=free or visible,
                sizes=sizes,
                column=columns[number] if count > 1 else None,
            )
        )
    texture: Texture = "plain" if rng.random() < 0.4 else TEXTURES[int(rng.integers(1, 5))]
    return Scene(
        objects=tuple(items),
        background=background,
        texture=texture,
        light="dim" if rng.random() < 0.2 else "normal",
        blur=float(rng.choice([0.0, rng.uniform(0.002, 0.012)])),
        grain=float(rng.choice([0.0, rng.uniform(2.0, 9.0)])),
        seed=int(rng.integers(2**31)),
    )

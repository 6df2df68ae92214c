"""Captions of scenes: what they claim, how they say it, and of which scenes they are true.

A caption need not say everything: "a red circle" is true of every scene with a red circle in it.
A :class:`Claim` holds what a caption says, :func:`phrase` puts it in words that vary, and
:func:`truth_matrix` tells of which scenes it is true, so that training never calls a true caption
false.

Shape legend: N scenes, M claims, O = 3 objects, A = 6 properties of an object.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    HELD_OUT,
    MOTIONS,
    ROWS,
    SHAPES,
    SIZES,
    TEXTURES,
    Object,
    Scene,
)

_LIGHTS = ("normal", "dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectClaim:
    """What a caption says of one object; None where it says nothing."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    row: str | None = None
    column: str | None = None
    motion: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a caption says of a scene; None where it says nothing."""

    objects: tuple[ObjectClaim, ...] = ()
    background: str | None = None
    texture: str | None = None
    light: str | None = None

    @property
    def has_held_out_pair(self) -> bool:
        """Return whether it names a pair of colour and shape that training must not meet."""
        return any((item.colour, item.shape) in HELD_OUT for item in self.objects)


def full_claim(scene: Scene) -> Claim:
    """Return everything that :attr:`Scene.caption` says.

    "on the left" speaks of the column alone, "at the top" of the row alone.
    """
    return Claim(
        objects=tuple(_object_claim(item) for item in scene.objects),
        background=scene.background,
        texture=scene.texture,
        light=scene.light,
    )


def _object_claim(item: Object) -> ObjectClaim:
    centred = (item.row, item.column) == ("middle", "center")
    return ObjectClaim(
        colour=item.colour,
        shape=item.shape,
        size=item.size,
        row=item.row if centred or item.row != "middle" else None,
        column=item.column if centred or item.column != "center" else None,
        motion=item.motion,
    )


def thin_out(claim: Claim, rng: np.random.Generator, *, keep: float) -> Claim:
    """Keep each property with probability ``keep``; at least a colour or shape stays."""

    def kept(value: str | None) -> str | None:
        return value if rng.random() < keep else None

    def thinned(item: ObjectClaim) -> ObjectClaim:
        colour, shape = kept(item.colour), kept(item.shape)
        if colour is None and shape is None:
            colour, shape = (item.colour, None) if rng.random() < 0.4 else (None, item.shape)
        # A centred place is named by both of its parts or not at all.
        centred = (item.row, item.column) == ("middle", "center")
        row, column = kept(item.row), kept(item.column)
        if centred and (row is None or column is None):
            row = column = None
        return ObjectClaim(
            colour=colour,
            shape=shape,
            size=kept(item.size),
            row=row,
            column=column,
            motion=kept(item.motion),
        )

    return Claim(
        objects=tuple(thinned(item) for item in claim.objects),
        background=kept(claim.background),
        texture=kept(claim.texture),
        light=kept(claim.light),
    )


def mutate(claim: Claim, rng: np.random.Generator) -> Claim:
    """Change one property of the claim, or exchange two objects' colours or motions.

    Near misses teach which object a property belongs to. Held-out pairs are never made: as they
    are in no training picture, they would be taught as always false.
    """
    for _ in range(20):
        changed = _mutate_once(claim, rng)
        if changed != claim and not changed.has_held_out_pair:
            return changed
    return replace(claim, background=str(rng.choice(list(BACKGROUNDS))))


_CHOICES: dict[str, Sequence[str]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "row": ROWS,
    "column": COLUMNS,
    "motion": MOTIONS,
}


def _mutate_once(claim: Claim, rng: np.random.Generator) -> Claim:
    items = list(claim.objects)
    if len(items) > 1 and rng.random() < 0.5:
        name = ("colour", "shape", "motion", "size")[int(rng.integers(4))]
        first, second = getattr(items[0], name), getattr(items[1], name)
        items[0] = replace(items[0], **{name: second})
        items[1] = replace(items[1], **{name: first})
        return replace(claim, objects=tuple(items))
    number = int(rng.integers(len(items)))
    name = str(rng.choice(["colour", "shape", "shape", "size", "row", "column", "motion"]))
    if getattr(items[number], name) is None:
        return claim
    items[number] = replace(items[number], **{name: str(rng.choice(list(_CHOICES[name])))})
    return replace(claim, objects=tuple(items))


# ---------------------------------------------------------------------------------------- words

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "purple": ("purple", "violet"),
    "gray": ("gray", "grey"),
    "cyan": ("cyan", "turquoise"),
    "small": ("small", "little", "tiny"),
    "medium": ("", "", "", "medium", "medium sized"),
    "large": ("large", "big", "huge"),
    "circle": ("circle", "disc", "disk"),
    "square": ("square", "box"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "donut"),
    "crescent": ("crescent", "moon"),
    "diamond": ("diamond", "rhombus"),
    "striped": ("striped", "stripy"),
    "checkered": ("checkered", "checkerboard", "chequered"),
    "dotted": ("dotted", "spotted"),
    "noisy": ("noisy", "grainy"),
    "plain": ("plain", "", ""),
}
_THINGS = ("object", "shape", "thing")
_MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "still": ("", "", "standing still", "not moving", "still"),
    "left": ("moving left", "moving to the left", "going left", "flying left"),
    "right": ("moving right", "moving to the right", "going right", "flying right"),
    "up": ("moving up", "moving upwards", "going up", "rising"),
    "down": ("moving down", "moving downwards", "going down", "falling"),
}
_ROW_WORDS = {
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
}
_COLUMN_WORDS = {
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
}
_CENTRE_WORDS = ("in the center", "in the middle", "in the centre", "at the center")
_LIGHT_WORDS: dict[str, tuple[str, ...]] = {
    "normal": ("",),
    "dim": ("in dim light", "in the dark", "in low light", "in dim light"),
}
_OPENINGS = (
    *("", "", "", "", ""),
    *("a photo of", "this is a photo of", "a picture of", "a video of", "an image of"),
)
_ON = ("on", "on", "on", "over", "against", "before", "in front of")
# Stands for any word that the vocabulary lacks: the model learns to pass over it.
UNKNOWN_WORD = "qqq"


def vocabulary() -> list[str]:
    """Return every word that :func:`phrase` and :attr:`Scene.caption` use, sorted."""
    phrases = [*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *TEXTURES, *_THINGS, *_OPENINGS, *_ON]
    tables = (_SYNONYMS, _MOTION_WORDS, _ROW_WORDS, _COLUMN_WORDS, _LIGHT_WORDS)
    for table in tables:
        phrases += [words for choices in table.values() for words in choices]
    phrases += [*_CENTRE_WORDS, "a an the and with background something at in left right"]
    return sorted({word for words in phrases for word in words.split()})


def _word(value: str, rng: np.random.Generator) -> str:
    """Return the value's own word half of the time, else one of its synonyms."""
    choices = _SYNONYMS.get(value, (value,))
    return choices[0] if rng.random() < 0.5 else choices[int(rng.integers(len(choices)))]


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _place(item: ObjectClaim, rng: np.random.Generator) -> str:
    if (item.row, item.column) == ("middle", "center"):
        return _CENTRE_WORDS[0] if rng.random() < 0.5 else _pick(_CENTRE_WORDS, rng)
    row = item.row if item.row in _ROW_WORDS else None
    column = item.column if item.column in _COLUMN_WORDS else None
    if row and column:
        return _pick((f"at the {row} {column}", f"in the {row} {column}"), rng)
    if row:
        return _pick(_ROW_WORDS[row], rng)
    if column:
        return _pick(_COLUMN_WORDS[column], rng)
    return ""


def _noun(item: ObjectClaim, rng: np.random.Generator) -> str:
    words = [_word(item.size, rng) if item.size else "", item.colour and _word(item.colour, rng)]
    words.append(_word(item.shape, rng) if item.shape else _pick(_THINGS, rng))
    if item.size and words[0] and item.colour and rng.random() < 0.1:
        words[:2] = words[1], words[0]
    noun = " ".join(word for word in words if word)
    article = _pick(("a", "a", "a", "the", ""), rng)
    return f"{'an' if article == 'a' and noun[0] in 'aeiou' else article} {noun}"


def _object_phrase(item: ObjectClaim, rng: np.random.Generator) -> str:
    motion = _pick(_MOTION_WORDS[item.motion], rng) if item.motion else ""
    tail = [motion, _place(item, rng)]
    if rng.random() < 0.25:
        tail.reverse()
    return " ".join((_noun(item, rng), *tail))


def phrase(claim: Claim, rng: np.random.Generator, *, unknown: float = 0.02) -> str:
    """Put the claim in words: lower case, single spaces; wording, order and articles vary.

    Args:
        claim: what to say; a claim of nothing gives an opening such as ``a photo of``.
        rng: chooses among synonyms.
        unknown: probability, at each word, that a word outside the vocabulary is put in before it.
    """
    items = list(claim.objects)
    order = rng.permutation(len(items)) if rng.random() < 0.5 else range(len(items))
    joint = _pick((" and ", " and ", " and ", " with "), rng)
    parts = [_pick(_OPENINGS, rng), joint.join(_object_phrase(items[i], rng) for i in order)]
    if claim.background or (claim.texture and claim.texture != "plain"):
        texture = _word(claim.texture, rng) if claim.texture else ""
        colour = _word(claim.background, rng) if claim.background else ""
        lead = _pick(_ON, rng) if items else ""
        parts.append(f"{lead} {_pick(('a', 'a', 'the', ''), rng)} {texture} {colour} background")
    if claim.light:
        parts.append(_pick(_LIGHT_WORDS[claim.light], rng))
    words = " ".join(parts).split()
    if unknown:
        words = [w for word in words for w in _maybe_unknown(word, rng, unknown)]
    return " ".join(words)


def _maybe_unknown(word: str, rng: np.random.Generator, chance: float) -> tuple[str, ...]:
    return (UNKNOWN_WORD, word) if rng.random() < chance else (word,)


# ---------------------------------------------------------------------------------------- truth

_OBJECT_TABLES = (tuple(COLOURS), SHAPES, SIZES, ROWS, COLUMNS, MOTIONS)
_SCENE_TABLES = (tuple(BACKGROUNDS), TEXTURES, _LIGHTS)
_OBJECT_FIELDS = ("colour", "shape", "size", "row", "column", "motion")
_SCENE_FIELDS = ("background", "texture", "light")
_NOTHING = -1
_NO_OBJECT = -2


def encode(
    described: Sequence[Scene | Claim],
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Encode scenes or claims as numbers.

    Returns:
        ``[N, 3, 6]`` properties of objects (-1 nothing said, -2 no object in this slot), and
        ``[N, 3]`` background, texture and light.
    """
    objects = np.full((len(described), 3, len(_OBJECT_FIELDS)), _NO_OBJECT, np.int8)
    rest = np.full((len(described), len(_SCENE_FIELDS)), _NOTHING, np.int8)
    for n, one in enumerate(described):
        for o, item in enumerate(one.objects):
            for a, (name, table) in enumerate(zip(_OBJECT_FIELDS, _OBJECT_TABLES, strict=True)):
                value = getattr(item, name)
                objects[n, o, a] = _NOTHING if value is None else table.index(value)
        for a, (name, table) in enumerate(zip(_SCENE_FIELDS, _SCENE_TABLES, strict=True)):
            value = getattr(one, name)
            rest[n, a] = _NOTHING if value is None else table.index(value)
    return objects, rest


def truth_matrix(
    scenes: tuple[NDArray[np.int8], NDArray[np.int8]],
    claims: tuple[NDArray[np.int8], NDArray[np.int8]],
) -> NDArray[np.bool_]:
    """Return which claims are true of which scenes, both encoded: bool ``[N, M]``.

    A claim is true when its objects can be told to different objects of the scene that have all
    the properties claimed; a scene may hold more than the claim says.
    """
    scene_NOA, scene_NB = scenes
    claim_MOA, claim_MB = claims
    said = claim_MOA[None, :, :, None, :]
    seen = scene_NOA[:, None, None, :, :]
    match_NMOO = ((said == seen) | (said < 0)).all(-1)
    # A claimed object needs a real one; a claim's empty slot takes anything.
    claimed = claim_MOA[None, :, :, None, 0] != _NO_OBJECT
    present = scene_NOA[:, None, None, :, 0] != _NO_OBJECT
    match_NMOO &= present | ~claimed
    objects_NM = np.zeros(match_NMOO.shape[:2], bool)
    for order in permutations(range(3)):
        objects_NM |= np.logical_and.reduce([match_NMOO[:, :, i, o] for i, o in enumerate(order)])
    rest_NM = ((claim_MB[None] == scene_NB[:, None]) | (claim_MB[None] < 0)).all(-1)
    truth: NDArray[np.bool_] = objects_NM & rest_NM
    return truth

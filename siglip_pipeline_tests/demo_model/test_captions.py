"""Captions: varied words, one meaning; and a truth that is checked against the plain definition."""

from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_pipeline.demo.scenes import SEEN_PAIRS, Object, Scene, random_scene
from tools.demo_model.captions import (
    UNKNOWN_WORD,
    Claim,
    ObjectClaim,
    encode,
    full_claim,
    mutate,
    phrase,
    thin_out,
    truth_matrix,
    vocabulary,
)

_seeds = st.integers(0, 2**32)


def _agrees(said: object, item: object) -> bool:
    return all(
        getattr(said, field.name) in (None, getattr(item, field.name))
        for field in fields(said)  # type: ignore[arg-type]
        if field.name != "objects"
    )


def _is_true(claim: Claim, scene: Scene) -> bool:
    """The definition, word for word: some choice of different objects has all that is claimed."""
    choices = permutations(scene.objects, len(claim.objects))
    found = any(
        all(_agrees(said, item) for said, item in zip(claim.objects, choice, strict=True))
        for choice in choices
    )
    return found and _agrees(claim, scene)


@given(_seeds)
@settings(max_examples=25)
def test_truth_is_what_its_definition_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few pairs, so that claims are often true of several scenes, and nearly true of others.
    pairs = [("red", "circle"), ("red", "star"), ("blue", "circle"), ("blue", "star")]
    scenes = [random_scene(rng, pairs=pairs) for _ in range(12)]
    claims = [thin_out(full_claim(s), rng, keep=float(rng.choice([0.1, 0.5, 0.9]))) for s in scenes]
    claims += [mutate(full_claim(scene), rng) for scene in scenes]
    expected = [[_is_true(claim, scene) for claim in claims] for scene in scenes]
    np.testing.assert_array_equal(truth_matrix(encode(scenes), encode(claims)), expected)
    assert np.array(expected).any()
    assert not np.array(expected).all()


@given(_seeds)
@settings(max_examples=50)
def test_a_scene_s_claims_are_true_of_it_however_thin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    claims = [full_claim(scene)] + [
        thin_out(full_claim(scene), rng, keep=keep) for keep in (0.0, 0.3, 0.7, 1.0)
    ]
    assert truth_matrix(encode([scene]), encode(claims)).all()


@given(_seeds)
@settings(max_examples=50)
def test_near_misses_are_other_claims_and_never_held_out_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    claim = full_claim(random_scene(rng, pairs=SEEN_PAIRS))
    changed = mutate(claim, rng)
    assert changed != claim
    assert not changed.has_held_out_pair


@given(_seeds)
@settings(max_examples=100)
def test_phrases_are_lower_case_words_of_the_vocabulary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    known = {*vocabulary(), UNKNOWN_WORD}
    for text in (phrase(thin_out(full_claim(scene), rng, keep=0.6), rng), scene.caption):
        assert text == text.lower().strip()
        assert "  " not in text
        assert set(text.split()) <= known
    assert UNKNOWN_WORD not in vocabulary()


def test_a_full_phrase_names_all_that_was_claimed() -> None:
    item = Object(colour="red", shape="star", size="large", row="top", column="left", motion="up")
    claim = full_claim(Scene(objects=(item,), background="blue", texture="striped", light="dim"))
    rng = np.random.default_rng(0)
    texts = {phrase(claim, rng, unknown=0) for _ in range(200)}
    assert len(texts) > 100
    for text in texts:
        words = set(text.split())
        assert {"red", "star", "top", "left", "blue", "background"} <= words
        assert words & {"large", "big", "huge"}
        assert words & {"striped", "stripy"}
        assert words & {"up", "upwards", "rising"}
        assert words & {"dim", "dark", "low"}


@pytest.mark.parametrize(
    ("row", "column", "said", "words"),
    [
        ("middle", "center", ("middle", "center"), "in the center"),
        ("middle", "left", (None, "left"), "on the left"),
        ("top", "center", ("top", None), "at the top"),
        ("bottom", "right", ("bottom", "right"), "at the bottom right"),
    ],
)
def test_a_caption_claims_the_place_that_its_words_name(
    row: str, column: str, said: tuple[str | None, str | None], words: str
) -> None:
    item = Object(colour="red", shape="star", row=row, column=column)
    scene = Scene(objects=(item,))
    claim = full_claim(scene).objects[0]
    assert (claim.row, claim.column) == said
    assert scene.caption == f"a red star {words} on a gray background"


def test_two_claimed_objects_need_two_objects() -> None:
    star = Object(colour="red", shape="star")
    one = Scene(objects=(star,))
    two = Scene(objects=(star, replace(star, shape="ring")))
    both = Claim(objects=(ObjectClaim(colour="red"), ObjectClaim(colour="red")))
    assert truth_matrix(encode([one, two]), encode([both])).tolist() == [[False], [True]]


def test_colours_belong_to_their_own_objects() -> None:
    scene = Scene(objects=(Object(colour="red", shape="star"), Object(colour="blue", shape="ring")))
    right = Claim(objects=(ObjectClaim(colour="blue", shape="ring"),))
    crossed = Claim(objects=(ObjectClaim(colour="red", shape="ring"),))
    assert truth_matrix(encode([scene]), encode([right, crossed])).tolist() == [[True, False]]

"""Write the demo's judged queries: ``python -m tools.demo_model.judge``.

The renderer knows what each scene shows, so which scenes a query is true of is computed, not judged
by a person. A test holds the file to this program.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from siglip_pipeline.demo.films import demo_timelines
from siglip_pipeline.demo.run import JUDGED_QUERIES
from siglip_pipeline.demo.scenes import ALL_PAIRS, HELD_OUT, MOTIONS, Scene
from tools.demo_model.captions import (
    Claim,
    ObjectClaim,
    encode,
    full_claim,
    phrase,
    truth_matrix,
)

SEED = 20_261_128
_COUNTS = {"caption": 40, "short": 60, "two objects": 30, "motion": 30, "nothing here": 40}
"""Queries of each kind: 200 in all."""


def judged_queries() -> Iterator[dict[str, Any]]:
    """Yield the documents of the file, in its order."""
    rng = np.random.default_rng(SEED)
    places = [
        (video, start, end, scene)
        for video, timeline in demo_timelines().items()
        for start, end, scene in timeline
    ]
    scenes = [scene for *_, scene in places]
    encoded = encode(scenes)
    asked: set[str] = set()
    for kind, draw in _KINDS.items():
        made = 0
        while made < _COUNTS[kind]:
            claim = draw(rng, scenes, made)
            true_N = truth_matrix(encoded, encode([claim]))[:, 0]
            text = phrase(claim, rng, unknown=0)
            if true_N.any() == (kind == "nothing here") or text in asked:
                continue
            asked.add(text)
            made += 1
            combination = "unseen" if claim.has_held_out_pair else "seen"
            yield {
                "query": text,
                "relevant": [
                    {
                        "video": video,
                        "start_seconds": round(start, 3),
                        "end_seconds": round(end, 3),
                    }
                    for (video, start, end, _), true in zip(places, true_N, strict=True)
                    if true
                ],
                "tags": [kind, *([combination] if kind != "nothing here" else [])],
            }


def _caption(rng: np.random.Generator, scenes: list[Scene], number: int) -> Claim:
    return full_claim(scenes[number % len(scenes)])


def _short(rng: np.random.Generator, scenes: list[Scene], number: int) -> Claim:
    items = [item for scene in scenes for item in scene.objects]
    unseen = [item for item in items if item.pair in HELD_OUT]
    # A third of combinations that training never showed, as there are few of them.
    choices = unseen if number % 3 == 0 else items
    item = choices[int(rng.integers(len(choices)))]
    return Claim(objects=(ObjectClaim(colour=item.colour, shape=item.shape),))


def _two_objects(rng: np.random.Generator, scenes: list[Scene], number: int) -> Claim:
    pairs = [scene for scene in scenes if len(scene.objects) == 2]
    scene = pairs[number % len(pairs)]
    return Claim(
        objects=tuple(ObjectClaim(colour=o.colour, shape=o.shape) for o in scene.objects),
        background=scene.background if rng.random() < 0.5 else None,
    )


def _motion(rng: np.random.Generator, scenes: list[Scene], number: int) -> Claim:
    moving = [o for scene in scenes for o in scene.objects if o.motion != "still"]
    item = moving[int(rng.integers(len(moving)))]
    return Claim(
        objects=(
            ObjectClaim(
                colour=item.colour if rng.random() < 0.6 else None,
                shape=item.shape,
                motion=item.motion,
            ),
        )
    )


def _nothing(rng: np.random.Generator, scenes: list[Scene], number: int) -> Claim:
    colour, shape = ALL_PAIRS[int(rng.integers(len(ALL_PAIRS)))]
    motion = MOTIONS[int(rng.integers(len(MOTIONS)))] if rng.random() < 0.3 else None
    return Claim(objects=(ObjectClaim(colour=colour, shape=shape, motion=motion),))


_KINDS: dict[str, Callable[[np.random.Generator, list[Scene], int], Claim]] = {
    "caption": _caption,
    "short": _short,
    "two objects": _two_objects,
    "motion": _motion,
    "nothing here": _nothing,
}


def write(path: Path = JUDGED_QUERIES) -> None:
    """Write the file."""
    lines = [json.dumps(document) for document in judged_queries()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
